"""Implicit filters: what they are at the start, and that no cast, save or load changes them."""

import math

import pytest
import torch

from modeling_m2bert import M2BertModel
from modeling_m2bert.m2bert_ops_filter import generate_taps, implicit_filter, implicit_filters


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


def test_a_shorter_filter_is_a_prefix(tiny_config, randomised):
    source = randomised(M2BertModel(tiny_config()).double()).layers[0].mixer.filter
    whole, part = (implicit_filter(source.parameters_for(length)) for length in (48, 13))
    assert (whole[..., :13] - part).abs().max() < 1e-12


def test_filters_are_the_same_together_alone_and_in_pieces(tiny_config, randomised, monkeypatch):
    mixer = randomised(M2BertModel(tiny_config()).double()).layers[0].mixer
    sources = [module.parameters_for(48) for module in (mixer.filter, mixer.residual_filter)]
    monkeypatch.setattr("modeling_m2bert.m2bert_ops_filter.POSITIONS_PER_CHUNK", 10)
    for together, source in zip(implicit_filters(sources), sources, strict=True):
        assert (together - implicit_filter(source)).abs().max() < 1e-12
        assert (generate_taps(source, 37) - together[..., :37]).abs().max() < 1e-12


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.bfloat16),
                                  lambda m: m.to(dtype=torch.float16, device="cpu")])  # fmt: skip
def test_casts_leave_the_filters_alone(tiny_config, randomised, cast):
    model = randomised(M2BertModel(tiny_config()))
    before = taps_of(model)
    cast(model)
    assert model.embeddings.word_embeddings.weight.dtype in (torch.float16, torch.bfloat16)
    assert torch.equal(before, taps_of(model))


def test_a_cast_of_one_submodule_at_a_time_leaves_the_filters_alone(tiny_config, randomised):
    model = randomised(M2BertModel(tiny_config()))
    before = taps_of(model)
    for module in model.modules():  # sentence-transformers aligns dtypes in this way
        module._apply(lambda t: t.to(torch.bfloat16) if t.is_floating_point() else t, recurse=False)
    assert torch.equal(before, taps_of(model))


def test_autocast_leaves_the_filters_alone(tiny_config, randomised):
    model = randomised(M2BertModel(tiny_config()))
    before = taps_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(before, taps_of(model))


def test_a_float64_model_has_float64_filters(tiny_config):
    model = M2BertModel(tiny_config()).double()
    assert taps_of(model).dtype == torch.float64
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
