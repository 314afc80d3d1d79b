"""AdamW with linear warm-up and decay; one parameter group, unless parts of the model get settings of their own."""

import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

# The research code's marks of its filters: (learning rate, weight decay).
RESEARCH_FEATURES = (1e-5, 0.0)
RESEARCH_FILTER_NETWORK = (1e-3, 0.1)


def parameter_groups(model: nn.Module, optim) -> list[dict]:
    """Group trained parameters by learning rate and weight decay; parts with the same two share a group.

    The parts are filters (what generates the taps: `optim.filter_lr`), layers (the rest of them: mixers with the
    filters' skips, feed-forward networks, norms: `layer_lr`), pooler (`pooler_lr`) and everything else (embeddings,
    masked-LM head: `lr`); a rate that is None is `lr`. The group of `lr` comes last.

    With `optim.research_groups` the filters have the settings that the research code means to give them (its markers
    are lost when it copies layers, so that it trained with one group): positional features 1e-5 without weight decay,
    the sine network with its frequency 1e-3 with 0.1, the skip those of everything else. It marks the network of the
    forward direction only; here both directions lie in one tensor, and both are marked.
    """
    main = (optim.lr, optim.weight_decay)
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(_settings(name, optim), []).append(parameter)
    ordered = sorted(groups, key=lambda settings: settings == main)  # stable: only `main` moves, to the end
    return [{"params": groups[settings], "lr": settings[0], "weight_decay": settings[1]} for settings in ordered]


def _settings(name: str, optim) -> tuple[float, float]:
    """Return (learning rate, weight decay) of a parameter."""
    in_filter = "filter." in name and not name.endswith(".skip")
    if in_filter and optim.research_groups:
        return RESEARCH_FEATURES if name.endswith("positional_features") else RESEARCH_FILTER_NETWORK
    parts = {"filter_lr": in_filter, "layer_lr": "layers." in name, "pooler_lr": "pooler." in name}
    rate = next((getattr(optim, key) for key, is_part in parts.items() if is_part), None)
    return (optim.lr if rate is None else rate), optim.weight_decay


def build_optimizer(model: nn.Module, optim, steps: int):
    """Return (AdamW, linear schedule with `warmup_share` of the steps)."""
    optimizer = torch.optim.AdamW(parameter_groups(model, optim), betas=tuple(optim.betas), eps=optim.eps)
    schedule = get_linear_schedule_with_warmup(optimizer, round(optim.warmup_share * steps), steps)
    return optimizer, schedule
