"""Weights are read in the call of the module that owns them, so whatever manages modules' weights works: offloading,
sharding, pruning, parametrizations, adapters, hooks."""

import copy
import logging
import warnings

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import AutoModel

from modeling_m2bert import M2BertConfig, M2BertForMaskedLM, M2BertModel

IDS = torch.randint(1, 120, (3, 20), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(20) < torch.tensor([[20], [7], [13]])).long()


def owners(model):
    """Names of the modules that hold parameters themselves."""
    return [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]


def config():
    sizes = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "filter_order": 8}
    kinds = {"position_embeddings": True, "mixer_layer_norm": True, "pooling": "mean_tanh"}
    return M2BertConfig(max_position_embeddings=48, hidden_dropout_prob=0.0, **sizes, **kinds)


with torch.device("meta"):
    META = M2BertModel(config())
KINDS = [name for name in owners(META) if not name.startswith("layers.1")]  # those of one layer, those outside
WEIGHTS = [name for name, each in META.named_parameters() if each.dim() >= 2 and "layers.1" not in name]


@pytest.fixture
def model(randomized):
    torch.manual_seed(0)
    return randomized(M2BertModel(config()))


@torch.no_grad()
def vectors(model):
    return model(IDS, MASK).pooler_output


def assert_close(found, expected):
    """Equal up to rounding, which is by where weights lie in memory."""
    assert (found - expected).abs().max() < 1e-6


def gradients(model):
    """Of a step of training, by name."""
    model.zero_grad()
    model(IDS, MASK).pooler_output.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("grad", [False, True])
def test_every_module_with_weights_is_called_once(model, grad):
    calls = []
    for name in owners(model):
        model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: calls.append(name))
    with torch.set_grad_enabled(grad):
        model(IDS, MASK)
    assert sorted(calls) == sorted(owners(model))


@pytest.mark.parametrize("name", KINDS)
def test_one_module_is_offloaded(model, name):
    expected = vectors(model)
    weights = {key: value.clone() for key, value in model.get_submodule(name).state_dict().items()}
    hook = AlignDevicesHook(execution_device="cpu", offload=True, weights_map=weights)
    add_hook_to_module(model.get_submodule(name), hook)
    assert all(parameter.is_meta for parameter in model.get_submodule(name).parameters())
    for _ in range(2):
        assert torch.equal(vectors(model), expected)


SPREAD = {"embeddings": "cpu", "layers": "disk", "pooler": "cpu"}


@pytest.mark.parametrize(("where", "share"), [({"": "disk"}, None), (SPREAD, None), ("auto", 0.3), ("auto", 0.7)])
def test_from_pretrained_with_weights_on_disk(model, tmp_path, where, share):
    expected = vectors(model)
    model.save_pretrained(tmp_path)
    size = sum(parameter.nbytes for parameter in model.parameters())
    memory = {"max_memory": {"cpu": int(share * size)}} if share else {}
    loaded = AutoModel.from_pretrained(tmp_path, device_map=where, offload_folder=tmp_path / "offload", **memory)
    assert any(parameter.is_meta for parameter in loaded.parameters())
    for _ in range(2):
        assert torch.equal(vectors(loaded.eval()), expected)


@pytest.mark.parametrize("grad", [False, True])
def test_weights_that_are_there_only_during_the_call(model, grad):
    """What ZeRO-3 does: memory is filled before a module's own call, and given back after it."""
    with torch.set_grad_enabled(grad):
        expected = model(IDS, MASK).pooler_output.detach()

    def fill(module, args):
        for parameter, kept in zip(module.parameters(recurse=False), module.kept, strict=True):
            parameter.data = kept.clone()

    def free(module, args, output):
        for parameter in module.parameters(recurse=False):
            parameter.data.fill_(float("nan"))
            parameter.data = parameter.new_empty(0)

    for name in owners(model):
        module = model.get_submodule(name)
        module.kept = [parameter.detach().clone() for parameter in module.parameters(recurse=False)]
        free(module, None, None)
        module.register_forward_pre_hook(fill)
        module.register_forward_hook(free)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            assert torch.equal(model(IDS, MASK).pooler_output.detach(), expected)


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", [*KINDS, "layers.0.mixer", "layers.0.mlp", "layers.0", "embeddings", "pooler", ""])
def test_one_module_is_sharded(model, one_process, name):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    twin = copy.deepcopy(model)
    module = fully_shard(model.get_submodule(name), mesh=init_device_mesh("cpu", (1,)))
    for _ in range(2):
        assert torch.equal(vectors(model), vectors(twin))
        module.reshard()  # else zero_grad would not find the sharded parameters
        found, expected = gradients(model), gradients(twin)
        assert found.keys() == expected.keys()
        for key, gradient in found.items():
            whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            assert torch.equal(whole, expected[key]), key
        vectors(model)
        module.reshard()
        with torch.no_grad():  # in evaluation mode: filters prepared before are not those of the new weights
            for each in (model, twin):
                for parameter in each.parameters():
                    parameter.mul_(1.1)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("how", ["prune", "weight_norm", "parametrize"])
def test_managed_weights_through_two_steps(model, name, how):
    place, _, attribute = name.rpartition(".")
    twin, module = copy.deepcopy(model), model.get_submodule(place)
    by_hand = dict(twin.named_parameters())[name]
    if how == "prune":
        prune.l1_unstructured(module, attribute, 0.5)
        sources = [getattr(module, f"{attribute}_orig")]
    elif how == "weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old way, and still used
            nn.utils.weight_norm(module, attribute)
        sources = [getattr(module, f"{attribute}_g"), getattr(module, f"{attribute}_v")]
    else:
        parametrize.register_parametrization(module, attribute, Doubled())
        sources = [module.parametrizations[attribute].original]
    for _ in range(2):
        found = vectors(model)
        with torch.no_grad():
            by_hand.copy_(getattr(module, attribute))
        assert_close(found, vectors(twin))
        model.zero_grad()
        model(IDS, MASK).pooler_output.square().sum().backward()
        for source in sources:
            assert source.grad.abs().sum() > 0
            with torch.no_grad():
                source.sub_(0.1 * source.grad / source.grad.abs().max())
        assert (vectors(model) - found).abs().max() > 1e-4


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_functional_call(model):
    changed = {name: 1.1 * parameter.detach() for name, parameter in model.named_parameters()}
    twin = copy.deepcopy(model)
    twin.load_state_dict(changed, strict=False)
    with torch.no_grad():
        found = torch.func.functional_call(model, changed, (IDS, MASK)).pooler_output
    assert_close(found, vectors(twin))


# peft


def adapted(model, **settings):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **settings)).eval()


@pytest.mark.parametrize("name", [name for name in WEIGHTS if "hidden_weight" not in name])
def test_adapters_of_every_weight(model, name):
    """But hidden_weight, whose four dimensions peft refuses."""
    before = vectors(model)
    module, _, attribute = name.rpartition(".")
    if isinstance(model.get_submodule(module), nn.Linear | nn.Embedding):
        tuned = adapted(copy.deepcopy(model), target_modules=[module])
    else:
        tuned = adapted(copy.deepcopy(model), target_modules=[], target_parameters=[name])
    found = vectors(tuned)
    assert not torch.equal(found, before)
    tuned(input_ids=IDS, attention_mask=MASK).pooler_output.square().sum().backward()
    trained = [parameter for name, parameter in tuned.named_parameters() if "lora_" in name]
    assert trained
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained)
    merged = tuned.merge_and_unload()
    assert (vectors(merged) - found).abs().max() < 1e-5


def test_tuning_of_every_norm(model):
    peft = pytest.importorskip("peft")
    before = vectors(model)
    tuned = peft.get_peft_model(copy.deepcopy(model), peft.LNTuningConfig(target_modules=["norm"])).eval()
    assert_close(vectors(tuned), before)
    tuned(input_ids=IDS, attention_mask=MASK).pooler_output.square().sum().backward()
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * sum("norm" in name for name in owners(model))
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained)


# products and layouts


class LinearOnly(torch.Tensor):
    """A weight of which only `linear` is defined, as quantized ones are."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is nn.functional.linear:
                x, weight, *bias = args
                assert x.is_contiguous()
                return nn.functional.linear(x, weight.as_subclass(torch.Tensor), *bias)
            if getattr(function, "__name__", "") in ("__get__", "detach", "requires_grad_"):
                return function(*args, **kwargs or {})
        raise NotImplementedError(f"{function} of a quantized weight")


class RowsOnly(nn.Linear):
    """A layer that gives wrong numbers for rows that are not contiguous."""

    def forward(self, x):
        return super().forward(x) if x.is_contiguous() else super().forward(x) * float("nan")


@pytest.mark.parametrize("name", ["mixer.in_proj", "mixer.out_proj"])
@pytest.mark.parametrize("replace", ["weight", "layer", "adapter"])
def test_projections_whose_weights_are_not_dense(model, name, replace):
    expected = vectors(model)
    for layer in model.layers:
        old = layer.get_submodule(name)
        if replace == "weight":
            old._parameters["weight"] = old.weight.detach().as_subclass(LinearOnly)
            continue
        new = RowsOnly(old.in_features, old.out_features, bias=old.bias is not None)
        new.load_state_dict(old.state_dict())
        if replace == "adapter":  # the layer inside another one
            new = nn.Sequential(new)
        layer.set_submodule(name, new)
    assert (vectors(model) - expected).abs().max() < 1e-5


def test_forward_mode_derivatives_are_refused(model):
    model.requires_grad_(False)
    x = torch.randn(1, 5, 32)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda x: model(inputs_embeds=x).last_hidden_state, (x,), (x,))


# what is returned


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_returned_hidden_states(model, mask, checkpointing):
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    outputs = model(IDS, mask, output_hidden_states=True)
    assert torch.equal(outputs.pooler_output, model(IDS, mask).pooler_output)
    for state in outputs.hidden_states:
        state.retain_grad()
    outputs.pooler_output.square().sum().backward()
    real = torch.ones(3, 20, dtype=torch.bool) if mask is None else mask.bool()
    for state in outputs.hidden_states:
        assert (state.grad[real].abs().sum(-1) > 0).all()
        assert not state.grad[~real].any()
    shift, found = 1e-3 * torch.randn_like(outputs.hidden_states[0]) * real[..., None], 0.0
    for sign in (1, -1):  # a central difference
        handle = model.embeddings.register_forward_hook(lambda module, args, x, sign=sign: x + sign * shift[real])
        with torch.no_grad():
            found = found + sign * model(IDS, mask).pooler_output.square().sum() / 2
        handle.remove()
    expected = (shift * outputs.hidden_states[0].grad).sum()
    assert abs(found - expected) < 1e-2 * abs(expected) + 1e-6


def test_dropout_is_switched_by_module(tiny_config):
    model = M2BertModel(tiny_config(hidden_dropout_prob=0.5)).train()
    assert not torch.equal(vectors(model), vectors(model))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.equal(vectors(model), vectors(model))
    model = M2BertModel(tiny_config(hidden_dropout_prob=0.5)).eval()
    assert torch.equal(vectors(model), vectors(model))
    model.layers[0].mlp.dropout.train()  # Monte Carlo dropout
    assert not torch.equal(vectors(model), vectors(model))
    model.layers[0].mlp.dropout = nn.Identity().train()
    assert torch.equal(vectors(model), vectors(model))


@pytest.mark.parametrize("pooling", ["mean", "cls", "cls_tanh", "weighted_mean"])
@pytest.mark.parametrize("length", [0, 5])
@pytest.mark.parametrize("grad", [False, True])
def test_no_texts_give_no_rows(tiny_config, pooling, length, grad):
    model = M2BertModel(tiny_config(pooling=pooling))
    ids = torch.zeros(0, length, dtype=torch.long)
    with torch.set_grad_enabled(grad):
        for mask in (None, ids):
            outputs = model(ids, mask, output_hidden_states=True)
            assert outputs.last_hidden_state.shape == (0, length, 32)
            assert outputs.pooler_output.shape == (0, model.config.projection_dim)
    if grad:
        outputs.pooler_output.sum().backward()


def test_a_full_length_is_reported_once(tiny_config, caplog):
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    model = M2BertModel(tiny_config()).eval()
    full, padded = torch.ones(1, 48, dtype=torch.long), (torch.arange(48) < 47).long()[None]
    try:
        model(full[:, :47])
        model(full, padded)
        M2BertModel(tiny_config()).train()(full)
        M2BertForMaskedLM(tiny_config()).eval()(full)
        assert not caplog.text
        model(full)
        model(full)
        assert caplog.text.count("at least one text reached 48 tokens; what is longer was cut") == 1
    finally:
        library.removeHandler(caplog.handler)


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_all_modules_are_offloaded(model, tmp_path, offload):
    expected = vectors(model)
    offload(model, execution_device="cpu", **({"offload_dir": tmp_path} if offload is disk_offload else {}))
    assert all(parameter.is_meta for parameter in model.parameters())
    for _ in range(2):
        assert torch.equal(vectors(model), expected)


def test_adapters_for_each_text_of_a_batch_are_refused_by_name(model):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules=["in_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, settings, "a")
    tuned.add_adapter("b", settings)
    tuned.eval()
    with pytest.raises(ValueError, match="adapter_names"):
        tuned(input_ids=IDS, attention_mask=MASK, adapter_names=["a", "b", "a"])
