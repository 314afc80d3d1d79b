"""AdamW with linear warm-up and decay, and separate learning rates for layers, filters and pooler."""

import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup


def parameter_groups(model: nn.Module, optim) -> list[dict]:
    """Filters (every parameter inside a filter module), layers (the rest of them), pooler, and everything else
    (embeddings, masked-LM head), each with its own learning rate; empty groups are left out."""
    groups = {"filters": [], "layers": [], "pooler": [], "rest": []}
    for name, parameter in model.named_parameters():
        group = (
            "filters"
            if "filter." in name
            else "layers"
            if "layers." in name
            else "pooler"
            if "pooler." in name
            else "rest"
        )
        groups[group].append(parameter)
    rates = {"filters": optim.filter_lr, "layers": optim.layer_lr, "pooler": optim.pooler_lr, "rest": optim.lr}
    return [
        {"params": parameters, "lr": optim.lr if rates[group] is None else rates[group]}
        for group, parameters in groups.items()
        if parameters
    ]


def build_optimizer(model: nn.Module, optim, steps: int):
    """(AdamW, linear schedule with `warmup_share` of the steps)."""
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optim), betas=tuple(optim.betas), eps=optim.eps, weight_decay=optim.weight_decay
    )
    schedule = get_linear_schedule_with_warmup(optimizer, round(optim.warmup_share * steps), steps)
    return optimizer, schedule
