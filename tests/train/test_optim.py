"""Parameter groups and schedule."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from transformers import AutoModel

from m2bert.train.trainer import build_optimizer, parameter_groups

OPTIM = {"lr": 1e-3, "layer_lr": 1e-4, "filter_lr": 1e-6, "pooler_lr": 1e-2, "betas": [0.9, 0.98], "eps": 1e-6,
         "weight_decay": 0.01, "warmup_share": 0.2, "research_groups": False}  # fmt: skip
ONE_RATE = {"layer_lr": None, "filter_lr": None, "pooler_lr": None}


def groups_of(model, **changes):
    """The groups, and (learning rate, weight decay) of every parameter, which is in one group at most."""
    groups = parameter_groups(model, SimpleNamespace(**OPTIM | changes))
    settings = {p: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(settings)
    return groups, {name: settings.get(parameter) for name, parameter in model.named_parameters()}


def test_every_parameter_is_in_the_group_of_its_learning_rate(tiny_config):
    _, named = groups_of(AutoModel.from_config(tiny_config(pooling="weighted_mean")))
    for rate, names in {
        1e-6: ("layers.1.mixer.residual_filter.output_weight", "layers.0.mixer.filter.hidden_bias"),
        1e-4: ("layers.0.mixer.filter.skip", "layers.0.mixer.out_proj.weight", "layers.1.mlp.up.weight"),
        1e-2: ("pooler.token_log_weights.weight",),
        1e-3: ("embeddings.word_embeddings.weight", "embeddings.norm.bias"),
    }.items():
        assert {named[name] for name in names} == {(rate, 0.01)}
    assert None not in named.values()


def test_empty_rates_fall_back_to_the_main_one(tiny_config):
    """What trains alike is one group: the original trained with one."""
    model = AutoModel.from_config(tiny_config())
    for changes in (ONE_RATE, {"filter_lr": None, "layer_lr": 1e-3}):
        groups, named = groups_of(model, **changes)
        assert len(groups) == 1
        assert set(named.values()) == {(1e-3, 0.01)}


def test_research_groups_are_the_filters_features_and_networks(tiny_config):
    _, named = groups_of(AutoModel.from_config(tiny_config()), **ONE_RATE, research_groups=True)
    for place in ("layers.0.mixer.filter.", "layers.1.mixer.residual_filter."):
        assert named[place + "positional_features"] == (1e-5, 0.0)
        for name in ("frequency", "input_weight", "input_bias", "hidden_weight", "hidden_bias", "output_weight"):
            assert named[place + name] == (1e-3, 0.1)
        assert named[place + "skip"] == (1e-3, 0.01)
    assert named["layers.0.mixer.in_proj.weight"] == named["embeddings.norm.bias"] == (1e-3, 0.01)


def test_frozen_parameters_are_left_out(tiny_config):
    model = AutoModel.from_config(tiny_config())
    model.embeddings.requires_grad_(False)
    for name, settings in groups_of(model)[1].items():
        assert (settings is None) == name.startswith("embeddings.")


def test_learning_rate_warms_up_and_decays_to_zero(tiny_config):
    optimizer, schedule = build_optimizer(AutoModel.from_config(tiny_config()), SimpleNamespace(**OPTIM), steps=10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[-1])
        optimizer.step()
        schedule.step()
    assert rates[0] == schedule.get_last_lr()[-1] == 0
    assert max(rates) == rates[2] == pytest.approx(1e-3)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_accelerate_sees_a_step_that_a_gradient_scaler_skips(tiny_config):
    model = AutoModel.from_config(tiny_config())
    optimizer, _ = build_optimizer(model, SimpleNamespace(**OPTIM), steps=10, scaled=True)
    Accelerator(cpu=True)  # its state, which the optimizer asks for
    scaler = torch.amp.GradScaler("cpu")
    seen = AcceleratedOptimizer(optimizer, device_placement=False, scaler=scaler)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    scaler.scale(torch.ones(()))
    seen.step()
    assert seen.step_was_skipped
    unscaled, _ = build_optimizer(model, SimpleNamespace(**OPTIM), steps=10)
    assert all(group["fused"] for group in unscaled.param_groups)
