"""Prepared filters are kept for inference, never stale, never in the way of gradients, and within their limit."""

import copy
import gc
import pickle

import pytest
import torch

from modeling_m2bert import M2BertModel, m2bert_ops_library
from modeling_m2bert.m2bert_ops_filter import clear_filter_cache, filter_cache_bytes


@pytest.fixture(autouse=True)
def _empty_cache():
    clear_filter_cache()


@pytest.fixture
def generated(monkeypatch):
    """Lengths for which filters were generated, one entry per filter."""
    lengths, generate = [], m2bert_ops_library.generate_taps
    monkeypatch.setattr(m2bert_ops_library, "generate_taps", lambda p, n: lengths.append(n) or generate(p, n))
    return lengths


@pytest.fixture
def model(tiny_config, randomised):
    torch.manual_seed(0)
    return randomised(M2BertModel(tiny_config()))


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


def test_with_gradients_the_cache_is_neither_read_nor_filled(model, generated):
    embed(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "filter.output_weight" in name:
                parameter.data.mul_(2)  # unannounced: the cache is stale now
    stale, fresh = embed(model), model(IDS).pooler_output
    assert not torch.allclose(stale, fresh)
    assert len(generated) == PER_LENGTH
    clear_filter_cache()
    assert torch.allclose(embed(model), fresh, atol=1e-5)


def change_in_place(model):
    with torch.no_grad():
        model.layers[1].mixer.filter.output_weight.mul_(2)


def change_by_optimizer(model):
    model(IDS).pooler_output.square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def change_by_assignment(model):
    old = model.layers[0].mixer.residual_filter.hidden_weight
    model.layers[0].mixer.residual_filter.hidden_weight = torch.nn.Parameter(old.detach() * 1.5)


def change_by_loading(model):
    model.load_state_dict({name: tensor * 1.01 for name, tensor in model.state_dict().items()})


def change_by_cast(model):
    model.double()


CHANGES = [change_in_place, change_by_optimizer, change_by_assignment, change_by_loading, change_by_cast]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_noticed(model, change):
    before = embed(model)
    change(model)
    after = embed(model)
    assert not torch.equal(before, after)
    clear_filter_cache()
    assert torch.equal(embed(model), after)


def test_training_mode_frees_the_memory(model):
    embed(model)
    model.eval()  # as sentence-transformers does before every text
    assert filter_cache_bytes()
    model.train()
    assert not filter_cache_bytes()


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


def test_a_length_is_kept_for_all_layers_or_for_none(model, generated, monkeypatch):
    needed = PER_LENGTH * 32 * 21 * 8
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", str(needed - 1))
    expected = embed(model)
    assert filter_cache_bytes() == 0
    assert torch.equal(embed(model), expected)
    assert len(generated) == 2 * PER_LENGTH
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", str(needed))
    embed(model)
    assert filter_cache_bytes() == needed


def test_the_oldest_length_makes_room(model, generated, monkeypatch):
    monkeypatch.setenv("M2BERT_FILTER_CACHE_BYTES", str(PER_LENGTH * 32 * (21 + 11) * 8))
    for length in (20, 10, 5, 10):
        embed(model, length)
    assert [generated.count(m) for m in (20, 10, 5)] == [PER_LENGTH] * 3
    embed(model, 20)
    assert generated.count(20) == 2 * PER_LENGTH


def test_inference_mode_leaves_usable_tensors(model):
    with torch.inference_mode():
        first = model(IDS).pooler_output
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
