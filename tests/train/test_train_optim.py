"""Parameter groups and schedule."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel

from m2bert_train.optim import build_optimizer, parameter_groups

OPTIM = SimpleNamespace(lr=1e-3, layer_lr=1e-4, filter_lr=1e-6, pooler_lr=1e-2, betas=[0.9, 0.98], eps=1e-6,
                        weight_decay=0.0, warmup_share=0.2)  # fmt: skip


def test_every_parameter_is_in_the_group_of_its_learning_rate(tiny_config):
    model = AutoModel.from_config(tiny_config(pooling="weighted_mean"))
    rate = {parameter: group["lr"] for group in parameter_groups(model, OPTIM) for parameter in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    named = {name: rate[parameter] for name, parameter in model.named_parameters()}
    assert named["layers.1.mixer.residual_filter.output_weight"] == named["layers.0.mixer.filter.skip"] == 1e-6
    assert named["layers.0.mixer.in_proj.weight"] == named["layers.1.mlp.up.weight"] == 1e-4
    assert named["pooler.token_log_weights.weight"] == 1e-2
    assert named["embeddings.word_embeddings.weight"] == named["embeddings.norm.bias"] == 1e-3


def test_empty_rates_fall_back_to_the_main_one(tiny_config):
    optim = SimpleNamespace(**vars(OPTIM) | {"layer_lr": None, "filter_lr": None, "pooler_lr": None})
    groups = parameter_groups(AutoModel.from_config(tiny_config()), optim)
    assert {group["lr"] for group in groups} == {1e-3}


def test_learning_rate_warms_up_and_decays_to_zero(tiny_config):
    optimizer, schedule = build_optimizer(AutoModel.from_config(tiny_config()), OPTIM, steps=10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[-1])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0
    assert max(rates) == rates[2] == pytest.approx(1e-3)
    assert schedule.get_last_lr()[-1] == 0
    assert isinstance(optimizer, torch.optim.AdamW)
