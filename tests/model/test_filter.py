"""Implicit filters: what they are at the start, that no cast changes them, and that prepared ones are kept for
inference, never stale, never in the way of gradients, and within their limit."""

import copy
import gc
import math
import pickle
import threading
import types
import weakref

import pytest
import torch

from modeling_m2bert import M2BertModel, m2bert_ops_filter, m2bert_ops_registry
from modeling_m2bert.m2bert_ops_filter import (
    FilterCache,
    clear_filter_cache,
    filter_cache_bytes,
    generate_taps,
    implicit_filter,
    implicit_filters,
    prepare_to_keep,
)  # fmt: skip


def taps_of(model):
    source = model.layers[0].mixer.filter
    return implicit_filter(source.parameters_for(model.config.max_position_embeddings)).detach()


def test_initial_features_time_and_decay(tiny_config):
    config = tiny_config(max_position_embeddings=16, filter_embedding_size=5, filter_decay_length=8)
    filter_ = M2BertModel(config).layers[0].mixer.filter
    t = torch.arange(16)
    angle = 2 * math.pi * t / 16
    features = torch.stack([t / 15, (1e-4 * angle).cos(), angle.cos(), -(1e-4 * angle).sin(), -angle.sin()], dim=1)
    assert torch.allclose(filter_.positional_features, features, atol=1e-6)
    assert torch.allclose(filter_.time, t / 7)
    assert filter_.decay[0] == pytest.approx(math.log(100) / 1.5)
    assert filter_.decay[-1] == pytest.approx(math.log(100) / 0.3)


def test_decay_per_token_is_kept_when_the_context_grows(tiny_config):
    short = M2BertModel(tiny_config(max_position_embeddings=24)).layers[0].mixer.filter
    long = M2BertModel(tiny_config(max_position_embeddings=48, filter_decay_length=24)).layers[0].mixer.filter
    assert torch.equal(short.time, long.time[:24])


def test_a_shorter_filter_is_a_prefix(tiny_config, randomized):
    source = randomized(M2BertModel(tiny_config()).double()).layers[0].mixer.filter
    whole, part = (implicit_filter(source.parameters_for(length)) for length in (48, 13))
    assert (whole[..., :13] - part).abs().max() < 1e-12


def test_filters_are_the_same_together_alone_and_in_pieces(tiny_config, randomized, monkeypatch):
    mixer = randomized(M2BertModel(tiny_config()).double()).layers[0].mixer
    sources = [module.parameters_for(48) for module in (mixer.filter, mixer.residual_filter)]
    monkeypatch.setattr("modeling_m2bert.m2bert_ops_filter.POSITIONS_PER_CHUNK", 10)
    for together, source in zip(implicit_filters(sources), sources, strict=True):
        assert (together - implicit_filter(source)).abs().max() < 1e-12
        assert (generate_taps(source, 37) - together[..., :37]).abs().max() < 1e-12


def cast_one_by_one(model):
    for module in model.modules():  # sentence-transformers aligns dtypes in this way
        module._apply(lambda t: t.to(torch.bfloat16) if t.is_floating_point() else t, recurse=False)


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.bfloat16(), cast_one_by_one,
                                  lambda m: m.to(dtype=torch.float16, device="cpu")])  # fmt: skip
def test_casts_and_autocast_leave_the_filters_alone(tiny_config, randomized, cast):
    model = randomized(M2BertModel(tiny_config()))
    before = taps_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(before, taps_of(model))
    cast(model)
    assert model.embeddings.word_embeddings.weight.dtype in (torch.float16, torch.bfloat16)
    assert torch.equal(before, taps_of(model))


# prepared filters


@pytest.fixture(autouse=True)
def _empty_cache():
    clear_filter_cache()


@pytest.fixture
def generated(monkeypatch):
    """Lengths for which filters were generated, one entry per filter."""
    lengths, generate = [], m2bert_ops_registry.generate_taps
    monkeypatch.setattr(m2bert_ops_registry, "generate_taps", lambda p, n: lengths.append(n) or generate(p, n))
    return lengths


@pytest.fixture
def model(tiny_config, randomized):
    torch.manual_seed(0)
    return randomized(M2BertModel(tiny_config()))


IDS = torch.arange(1, 21)[None]
PER_LENGTH = 2 * 2  # filters: two layers, gated and residual


def embed(model, length=20):
    with torch.no_grad():
        return model(IDS[:, :length]).pooler_output


def test_filters_are_generated_once_per_transform_length(model, generated):
    first = embed(model)
    assert len(generated) == PER_LENGTH
    assert torch.equal(embed(model), first)
    embed(model, 19)  # the same transform length
    assert len(generated) == PER_LENGTH
    embed(model, 10)
    assert generated == [20] * PER_LENGTH + [10] * PER_LENGTH
    assert filter_cache_bytes() == PER_LENGTH * 32 * (21 + 11) * 8  # H * (M + 1) complex64


def test_with_gradients_and_in_training_mode_the_cache_is_neither_read_nor_filled(model, generated):
    """An update may follow, and optimizers may change weights unannounced, through flat buffers."""
    expected = embed(model)
    assert len(generated) == PER_LENGTH
    assert torch.allclose(model(IDS).pooler_output, expected, atol=1e-5)
    assert not filter_cache_bytes()
    assert torch.allclose(embed(model.train()), expected, atol=1e-5)
    assert len(generated) == PER_LENGTH
    assert not filter_cache_bytes()


def change_in_place(model):
    with torch.no_grad():
        model.layers[1].mixer.filter.output_weight.mul_(2)


def change_by_assignment_of_the_same_version(model):
    old = model.layers[0].mixer.residual_filter.hidden_weight
    with torch.no_grad():
        new = torch.nn.Parameter(old.detach().clone())
        while new._version < old._version:
            new.mul_(1.2)
    model.layers[0].mixer.residual_filter.hidden_weight = new


def change_of_shape_in_place(model):
    weight = model.layers[0].mixer.filter.hidden_weight
    weight.data = weight.data.mT


def change_by_loading(model):
    model.load_state_dict({name: tensor * 1.01 for name, tensor in model.state_dict().items()})


def change_by_fused_optimizer(model):
    model(IDS).pooler_output.square().sum().backward()
    embed(model)
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()


def change_by_merged_adapter(model):
    peft = pytest.importorskip("peft")
    settings = {"r": 2, "init_lora_weights": False, "target_modules": []}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings, target_parameters=["filter.output_weight"]))
    adapted.eval().merge_and_unload()


def change_of_data(model):
    model.layers[0].mixer.filter.output_weight.data.mul_(2)


def change_of_a_skip_term(model):
    model.layers[0].mixer.residual_filter.skip.data.mul_(2)


CHANGES = [change_of_data, change_of_a_skip_term, change_by_fused_optimizer, change_by_merged_adapter, change_in_place,
           change_by_assignment_of_the_same_version, change_of_shape_in_place, change_by_loading,
           lambda model: model.double()]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_noticed(model, change):
    before = embed(model)
    change(model)
    after = embed(model)
    assert not torch.equal(before, after)
    clear_filter_cache()
    assert torch.equal(embed(model), after)


def test_exchanged_values_are_noticed():
    weight, cache, prepared = torch.arange(64.0), FilterCache(1), []
    for _ in range(2):
        m2bert_ops_filter.cached((cache.handle, 1), 1, [weight], lambda: prepared.append(1) or (weight.clone(),))
        weight.data.copy_(weight.data.flip(0))
    assert len(prepared) == 2


@pytest.mark.parametrize("change", [lambda model: model.train(), change_by_loading, lambda model: model.half()])
def test_what_makes_filters_useless_frees_their_memory(model, change):
    embed(model)
    model.eval()  # as sentence-transformers does before every text
    assert filter_cache_bytes()
    change(model)
    assert not filter_cache_bytes()


def test_each_precision_and_each_choice_of_kernels_has_its_own(tiny_config, randomized, monkeypatch):
    pytest.importorskip("triton")
    model = randomized(M2BertModel(tiny_config(hidden_size=8, intermediate_size=8, num_hidden_layers=1)))
    for kernels in ("torch", "triton", "torch"):
        monkeypatch.setenv("M2BERT_KERNELS", kernels)
        with torch.no_grad():
            plain = model(IDS[:, :3]).pooler_output
            with torch.autocast("cpu", torch.float16):
                half = model(IDS[:, :3]).pooler_output.float()
        assert torch.cosine_similarity(plain, half).item() > 0.999
        keys = set(m2bert_ops_filter._groups)
        assert {(path, dtype) for _, _, path, dtype, _ in keys} >= {(kernels, torch.float16), (kernels, torch.float32)}


def test_a_limit_that_is_no_number_is_named(model, monkeypatch):
    for text in ("abc", "3GB", "-1", "3e9"):
        monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", text)
        with pytest.raises(ValueError, match=f"M2BERT_FILTER_CACHE_BYTES='{text}' is not a number of bytes"):
            embed(model)
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", "")
    embed(model)
    assert filter_cache_bytes()


def test_threads_and_collected_models_do_not_disturb_each_other(monkeypatch):
    """Admission, eviction and forgetting at once, with a limit that is always short."""
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", "1000")
    weight, errors = torch.ones(4), []

    def work(seed):
        try:
            for i in range(2000):
                cache = FilterCache(1)
                m2bert_ops_filter.cached((cache.handle, (seed + i) % 7), 1, [weight], lambda: (torch.zeros(60),))
        except (KeyError, RuntimeError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert filter_cache_bytes() == 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_a_cache_of_their_own_and_take_it_along_when_they_go(model, duplicate, generated):
    embed(model)
    size = filter_cache_bytes()
    other = duplicate(model)
    change_in_place(other)
    assert not torch.equal(embed(other), embed(model))
    assert len(generated) == 2 * PER_LENGTH
    assert filter_cache_bytes() == 2 * size
    del other
    gc.collect()
    assert filter_cache_bytes() == size


def test_a_length_that_the_limit_has_no_room_for_is_kept_for_the_first_layers(model, generated, monkeypatch):
    one_layer, short = PER_LENGTH // 2 * 32 * 21 * 8, PER_LENGTH * 32 * 6 * 8
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", str(2 * one_layer - 1))
    expected = embed(model)
    assert filter_cache_bytes() == one_layer
    for calls in (1, 2):
        assert torch.equal(embed(model), expected)
        assert len(generated) == PER_LENGTH + calls * PER_LENGTH // 2
    change_in_place(model)
    changed = embed(model)
    assert not torch.equal(changed, expected)
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", str(short + one_layer))
    assert torch.equal(embed(model), changed)
    embed(model, 5)
    assert filter_cache_bytes() == short + one_layer
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", str(short + one_layer - 1))
    embed(model)
    embed(model, 5)  # a length with room for all layers takes the other's
    assert filter_cache_bytes() == short
    embed(model)  # and keeps it
    assert filter_cache_bytes() == short
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", str(2 * one_layer))
    embed(model)
    assert filter_cache_bytes() == 2 * one_layer
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", "0")
    embed(model)
    assert filter_cache_bytes() == 0


def test_the_oldest_length_makes_room(model, generated, monkeypatch):
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", str(PER_LENGTH * 32 * (21 + 11) * 8))
    for length in (20, 10, 5, 10):
        embed(model, length)
    assert [generated.count(m) for m in (20, 10, 5)] == [PER_LENGTH] * 3
    embed(model, 20)
    assert generated.count(20) == 2 * PER_LENGTH


@pytest.fixture
def capturing(monkeypatch):
    """Make the cache believe that a CUDA graph is being captured; the fixture is a function of True or False."""
    return lambda answer: monkeypatch.setattr(m2bert_ops_filter, "is_capturing", lambda device: answer)


def test_what_a_cuda_graph_reads_is_held_until_the_model_goes(model, generated, monkeypatch, capturing):
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", str(PER_LENGTH * 32 * (21 + 11 + 6) * 8 - 1))
    expected = embed(model)
    embed(model, 10)
    capturing(True)
    assert torch.equal(embed(model), expected)
    capturing(False)
    held = [prepared for group in m2bert_ops_filter._groups.values() for prepared in group.captured.values()]
    read = [weakref.ref(tensor) for tensor in m2bert_ops_filter._tensors(held)]
    del held
    assert len(read) == PER_LENGTH
    embed(model, 5)  # no room: the other length goes, although it is younger
    assert filter_cache_bytes() == PER_LENGTH * 32 * (21 + 6) * 8
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", str(PER_LENGTH * 32 * 29 * 8))
    embed(model, 5)
    embed(model, 10)  # no room at all: nothing goes for it
    assert filter_cache_bytes() == PER_LENGTH * 32 * (21 + 6) * 8
    embed(model)
    assert generated.count(20) == PER_LENGTH
    for change in (change_in_place, change_by_fused_optimizer, change_by_loading, lambda model: model.train()):
        change(model)
        embed(model.eval())
    gc.collect()
    assert all(reference() is not None for reference in read)
    assert filter_cache_bytes() == 2 * PER_LENGTH * 32 * 21 * 8
    clear_filter_cache()
    gc.collect()
    assert not any(reference() is not None for reference in read)


def test_nothing_is_prepared_while_a_cuda_graph_is_captured(model, capturing):
    capturing(True)
    with pytest.raises(RuntimeError, match="run the model once at this length before capturing"):
        embed(model)
    assert not filter_cache_bytes()


def test_what_is_kept_is_complete_before_another_stream_can_read_it(monkeypatch):
    done, device = [], torch.device("cuda", 1)
    stream = types.SimpleNamespace(synchronize=lambda: done.append("synchronized"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: done.append(where) or stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert prepare_to_keep(device, lambda: done.append("prepared") or 7) == 7
    assert done == ["prepared", device, "synchronized"]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="captured"):
        prepare_to_keep(device, done.clear)
    assert done
    assert prepare_to_keep(torch.device("cpu"), lambda: 8) == 8


def test_inference_mode_leaves_usable_tensors(model):
    with torch.inference_mode():
        first = model(IDS).pooler_output
    kept = [layer[2] for group in m2bert_ops_filter._groups.values() for layer in group.layers.values()]
    assert kept
    assert not any(tensor.is_inference() for prepared in kept for tensor in m2bert_ops_filter._tensors(prepared))
    assert torch.equal(embed(model), first)
    model(IDS).pooler_output.sum().backward()


@pytest.mark.filterwarnings("ignore")
def test_compiled_as_one_graph_with_a_cache_that_follows_the_weights(model, generated):
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        for _ in range(2):
            assert torch.allclose(compiled(IDS, mask).pooler_output, embed(model), atol=1e-5)
        assert len(generated) == PER_LENGTH
        change_in_place(model)
        assert torch.allclose(compiled(IDS, mask).pooler_output, embed(model), atol=1e-5)
        assert len(generated) == PER_LENGTH + 2


@pytest.mark.filterwarnings("ignore")
def test_layers_compiled_one_by_one_share_their_graph(tiny_config, randomized):
    torch._dynamo.reset()
    model = randomized(M2BertModel(tiny_config(num_hidden_layers=10)))
    expected = embed(model)
    for layer in model.layers:
        layer.compile(fullgraph=True, backend="aot_eager")
    assert torch.allclose(embed(model), expected, atol=1e-5)
