"""Sharded training: two real processes whose parameters are DTensors give the losses and the weights of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM

from m2bert.hub.folder import write_folder

CONFIGURATION = Path(__file__).parents[2] / "train" / "accelerate" / "fsdp2.yaml"

SCRIPT = """
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForMaskedLM

from m2bert.train.checkpoints import Checkpoints, Progress
from m2bert.train.trainer import finish

(folder,) = sys.argv[1:]
accelerator = Accelerator(cpu=True)
rank, world = accelerator.process_index, accelerator.num_processes
assert world == 2
model = AutoModelForMaskedLM.from_pretrained(folder + "/start")
size = sum(parameter.numel() for parameter in model.parameters())
state = SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin())  # of the environment that the file made
assert state.fsdp_plugin.fsdp_version == 2
model = fsdp2_prepare_model(SimpleNamespace(state=state, mixed_precision="no", is_main_process=rank == 0), model)
assert all(isinstance(layer, FSDPModule) for layer in model.model.layers)
assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
assert sum(parameter.to_local().numel() for parameter in model.parameters()) < 0.6 * size

batches = torch.load(folder + "/batches.pt")
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
losses = []


def loss_of(step):
    ids, labels = (tensor[rank::2] for tensor in batches[step])
    loss = model(ids, labels=labels, num_items_in_batch=(batches[step][1] != -100).sum()).loss
    total = loss.detach().clone()
    dist.all_reduce(total)
    losses.append(total.item())
    return loss


for step in range(3):
    model.train()
    (loss_of(step) * 2).backward()  # gradients are averaged over processes
    optimizer.step()
    optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        loss_of(3)
if rank == 0:
    torch.save(losses, folder + "/losses.pt")

# what accelerate's own does for a model that it has sharded itself
options = StateDictOptions(full_state_dict=True, cpu_offload=True)
accelerator.get_state_dict = lambda model: get_model_state_dict(model, options=options)
settings = SimpleNamespace(output_dir=folder + "/sharded", overwrite=False, checkpoint_every=0, checkpoint_keep=1,
                           resume=False, model_dump=dict)
checkpoints = Checkpoints(accelerator, settings, {})
checkpoints.folder.mkdir(exist_ok=True)
progress = Progress(step=3)
checkpoints.keep_best(model, progress, 0.5)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.zero_()
accelerator.wait_for_everyone()
checkpoints.load_best(model, progress)
finish(accelerator, model, None, settings, {"config": {}})
"""


def make_batches():
    """Three batches to train on and one held out: ids (4, 20), a third of them predicted, unevenly spread."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(4):
        ids = torch.randint(1, 120, (4, 20), generator=generator)
        chosen = torch.rand(4, 20, generator=generator) < torch.tensor([[0.1], [0.2], [0.4], [0.6]])
        batches.append((ids, torch.where(chosen, ids, -100)))
    return batches


def train_alone(model, batches):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for step in range(3):
        loss = model.train()(batches[step][0], labels=batches[step][1]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            held_out = model.eval()(batches[3][0], labels=batches[3][1]).loss
        losses += [loss.item(), held_out.item()]
    return losses


def environment():
    """What `accelerate launch --config_file fsdp2.yaml` tells its processes about sharding."""
    from accelerate.utils.launch import prepare_multi_gpu_env

    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(CONFIGURATION), "script.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    return {key: value for key, value in prepare_multi_gpu_env(arguments).items() if key.startswith("FSDP_")}


def test_accelerate_understands_the_shipped_configuration():
    configuration = load_config_from_file(str(CONFIGURATION))
    assert isinstance(configuration, ClusterConfig)
    assert configuration.distributed_type.value == "FSDP"
    told = environment()
    assert told["FSDP_VERSION"] == "2"
    assert told["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert told["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "M2BertLayer"
    assert told["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"


def test_a_folder_holds_the_whole_weights_that_are_given(tiny_config, randomized, tmp_path):
    """All of them, also those that sentence-transformers' files repeat."""
    config = tiny_config(pooling="mean_tanh")
    model, whole = AutoModel.from_config(config), randomized(AutoModel.from_config(config))
    folder = write_folder(model, None, tmp_path / "out", state_dict=whole.state_dict())
    for name, tensor in AutoModel.from_pretrained(folder).state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
    assert torch.equal(load_file(folder / "2_Dense" / "model.safetensors")["linear.weight"], whole.pooler.dense.weight)


@pytest.mark.slow
def test_sharded_training_is_training(tiny_config, randomized, tmp_path):
    model = randomized(AutoModelForMaskedLM.from_config(tiny_config(sparse_prediction=True))).double()
    model.save_pretrained(tmp_path / "start")
    batches = make_batches()
    torch.save(batches, tmp_path / "batches.pt")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(tmp_path / "script.py"), str(tmp_path)]
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment()
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

    expected = train_alone(model, batches)
    assert torch.load(tmp_path / "losses.pt") == pytest.approx(expected, rel=1e-10)
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "sharded").state_dict()
    for name, tensor in model.state_dict().items():
        assert reloaded[name].dtype == tensor.dtype == torch.float64
        assert (reloaded[name] - tensor).abs().max() <= 1e-9, name
