"""Two processes train as one: DistributedDataParallel over gloo gives the gradients of the whole batch."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from modeling_m2bert import M2BertConfig, M2BertForMaskedLM


def make():
    torch.manual_seed(0)
    config = M2BertConfig(vocab_size=120, hidden_size=32, num_hidden_layers=2, intermediate_size=64, filter_order=8,
                          max_position_embeddings=48, hidden_dropout_prob=0.0)  # fmt: skip
    ids = torch.randint(1, 120, (2, 20))
    return M2BertForMaskedLM(config).train(), ids


def gradients(model, ids, checkpointing):
    if checkpointing:
        getattr(model, "module", model).gradient_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}


def work(rank, folder, checkpointing):
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model, ids = make()
    found = gradients(DistributedDataParallel(model), ids[rank : rank + 1], checkpointing)
    if rank == 0:
        torch.save(found, f"{folder}/gradients.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_processes_give_the_gradients_of_the_whole_batch(tmp_path, checkpointing):
    torch.multiprocessing.spawn(work, (str(tmp_path), checkpointing), nprocs=2)
    found, expected = torch.load(tmp_path / "gradients.pt"), gradients(*make(), False)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * max(1, gradient.abs().max()), name
