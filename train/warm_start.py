"""Warm start (paper section 4.2): a trained model with more positions, to be trained on for longer texts.

    python -m m2bert.train.warm_start --model DIR --max-length 32768 --output DIR
        [--positions replicate|interpolate] [--decay keep|stretch]

What depends on the number of positions N are the position embeddings (N, H) and, in each long filter, the features
(N, E) and the time (N,) of its taps. For M > N positions:

- `--positions replicate` (default) repeats the position embeddings as often as they fit, the paper's way;
  `interpolate` draws the table out to M rows, linearly, and so moves every position.
- `--decay keep` (default) leaves the N taps as they are and continues them: time by its own step, so that the decay
  per token stays, and the features by the formula they were initialised with, at the speed of the taps that are there
  (`tap_speed`). A trained table has drifted from that formula row by row; a new row has no drift of its own, and none
  is made up. `stretch` draws features and time out to M taps, so that a filter reaches M / N times as far, and scales
  `filter_decay_length` with them. Tap values are not rescaled: a smooth filter then sums to M / N times as much.

With replicate and keep, nothing changes for inputs of up to N tokens. The other ways change every vector. A model may
be extended again and again: filters that are kept do not depend on the steps to a length.
"""

import argparse
import copy
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from m2bert.hub.card import About, Card
from m2bert.hub.checkpoint import load_checkpoint, load_tokenizer
from m2bert.hub.export import read_records
from m2bert.hub.folder import check_output, write_folder
from m2bert.hub.sentence_files import read_sentence_files

from .runs import command_line

POSITIONS = ("replicate", "interpolate")
DECAYS = ("keep", "stretch")
DRIFT = 1.25  # factor by which training may have changed how fast the features grow from tap to tap


@torch.no_grad()
def extend(
    model: PreTrainedModel, max_length: int, positions: str = "replicate", decay: str = "keep"
) -> PreTrainedModel:
    """A copy of any M2-BERT with `max_length` positions; see the module.

    Raises:
        ValueError: max_length is not more than the model has, or positions or decay is unknown.
    """
    old = model.config.max_position_embeddings
    if positions not in POSITIONS:
        raise ValueError(f"positions={positions!r} is unknown; choose {' or '.join(POSITIONS)}")
    if decay not in DECAYS:
        raise ValueError(f"decay={decay!r} is unknown; choose {' or '.join(DECAYS)}")
    if max_length <= old:
        raise ValueError(
            f"max_length={max_length} is not more than the {old} positions that the model has; name a larger one. A "
            "model need not shrink: it reads shorter texts as it is, and max_seq_length of its "
            "sentence_bert_config.json cuts texts sooner"
        )
    model = copy.deepcopy(model)
    embeddings = model.base_model.embeddings.position_embeddings
    if embeddings is not None:
        grow = replicate if positions == "replicate" else resample
        _replace(embeddings, "weight", grow(embeddings.weight, max_length))
        embeddings.num_embeddings = max_length
    for layer in model.base_model.layers:
        for module in (layer.mixer.filter, layer.mixer.residual_filter):
            if module is None:
                continue
            features, time = module.positional_features, module.time
            if decay == "keep":
                features = continue_features(features, tap_speed(features, time), max_length)
                time = continue_time(time, max_length)
            else:
                features, time = resample(features, max_length), resample(time[:, None], max_length)[:, 0]
            _replace(module, "positional_features", features)
            module.time = time
    model.config.max_position_embeddings = max_length
    if decay == "stretch":
        taps = (model.config.filter_decay_length - 1) * (max_length - 1) / max(old - 1, 1)
        model.config.filter_decay_length = 1 + round(taps)
    return model


def replicate(table: Tensor, length: int) -> Tensor:
    """(N, C) -> (length, C): the rows over and over."""
    return table.repeat(math.ceil(length / len(table)), 1)[:length]


def resample(table: Tensor, length: int) -> Tensor:
    """(N, C) -> (length, C): linear interpolation between rows; the first and the last row stay."""
    rows = F.interpolate(table.double().T[None], size=length, mode="linear", align_corners=True)
    return rows[0].T.to(table.dtype).contiguous()


def tap_speed(features: Tensor, time: Tensor) -> float:
    """What the first feature, t / (P - 1) in a new model of P positions, grows by from tap to tap.

    P is not always the number of rows: `keep` adds rows at the old speed. Nor can it be read off `filter_decay_length`,
    which may be chosen freely; where it was not, though, the first feature began as a copy of the time, is continued
    and stretched like it, and the time is not trained. So the speed is that of the time, unless the table disagrees by
    more than DRIFT: then the median over the taps, which rows continued at that very speed leave where it is.
    """
    if len(time) == 1:
        return 1.0
    steps = torch.arange(1, len(time), dtype=torch.float64, device=time.device)
    speed = float((features[1:, 0].double() / steps).median())
    speed_of_time = float((time[-1] - time[0]).double() / (len(time) - 1))
    agree = speed_of_time / DRIFT < speed < speed_of_time * DRIFT
    return speed if speed > 0 and not agree else speed_of_time


def continue_features(features: Tensor, speed: float, length: int) -> Tensor:
    """(N, E) -> (length, E): row t >= N is [t / (P - 1), cos(f w_t) .., -sin(f w_t) ..], w_t = 2 pi t / P, with
    (E - 1) / 2 frequencies f spread evenly from 1e-4 upwards and P = 1 + 1 / speed: the initialisation of a model of P
    positions."""
    old, size = features.shape
    bands = (size - 1) // 2
    steps = torch.arange(old, length, dtype=torch.float64)[:, None]
    frequencies = torch.linspace(1e-4, max(bands - 1, 1e-4), bands, dtype=torch.float64)
    angles = frequencies * (2 * math.pi * steps / (1 + 1 / speed))
    rows = torch.cat([steps * speed, angles.cos(), -angles.sin()], dim=1)
    return torch.cat([features, rows.to(features)])


def continue_time(time: Tensor, length: int) -> Tensor:
    """(N,) -> (length,): onwards by the mean step."""
    old = len(time)
    step = (time[-1] - time[0]).double() / max(old - 1, 1)
    steps = torch.arange(1, length - old + 1, dtype=torch.float64, device=time.device)
    return torch.cat([time, (time[-1].double() + step * steps).to(time)])


def _replace(module: torch.nn.Module, name: str, value: Tensor):
    old = getattr(module, name)
    setattr(module, name, torch.nn.Parameter(value, requires_grad=old.requires_grad))


def report(before: PreTrainedModel, after: PreTrainedModel, positions: str, decay: str) -> str:
    """What `extend` changed, and what it promises, as Markdown."""
    old, new = before.config, after.config
    ratio = f"{new.max_position_embeddings / old.max_position_embeddings:g}"
    how = {
        "replicate": f"replicated, {ratio} times",
        "interpolate": "interpolated linearly",
        "keep": "the first taps kept, more by the formula",
        "stretch": f"stretched, {ratio} times",
    }
    rows = [
        ("longest input, tokens", old.max_position_embeddings, new.max_position_embeddings, ""),
        ("`filter_decay_length`, tokens", old.filter_decay_length, new.filter_decay_length, ""),
        ("parameters", f"{before.num_parameters():,}", f"{after.num_parameters():,}", ""),
    ]
    tables = {
        "position embeddings": ("position_embeddings.weight", how[positions]),
        "filter features": ("positional_features", how[decay]),
        "filter time": ("filter.time", how[decay]),
    }
    state_before, state_after = before.state_dict(), after.state_dict()
    for what, (ending, change) in tables.items():
        names = [name for name in state_after if name.endswith(ending)]
        if names:
            shapes = [" x ".join(map(str, state[names[0]].shape)) for state in (state_before, state_after)]
            count = f", {len(names)} tensors" if len(names) > 1 else ""
            rows.append((what + count, *shapes, change))
    lines = ["| | before | after | |", "|---|---|---|---|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]
    return "\n".join([*lines, "", promise(old, positions, decay)])


def promise(config, positions: str, decay: str) -> str:
    """What holds for inputs that the model could read before."""
    filters_move = decay == "stretch" and config.num_hidden_layers
    if positions == "replicate" and not filters_move:
        padded = "" if config.padding == "masked" else ", padded as far as before,"
        return (
            f"Inputs of up to {config.max_position_embeddings} tokens{padded} have the outputs of the model that was "
            "extended, up to rounding. Longer inputs need training."
        )
    moved = ["position embeddings"] * (positions == "interpolate") + ["filters"] * bool(filters_move)
    return (
        f"The {' and '.join(moved)} moved: all outputs differ from the original's, also on short inputs. Train it on."
    )


def main(argv: list[str]):
    parser = argparse.ArgumentParser(prog="warm_start")
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--positions", default="replicate")
    parser.add_argument("--decay", default="keep")
    arguments = parser.parse_args(argv)
    disable_progress_bar()
    check_output(arguments.output, overwrite=False)
    before = load_checkpoint(arguments.model)
    folder = Path(arguments.model)
    settings = read_sentence_files(before, folder)  # also brings a trained Dense back into the model
    settings.max_tokens = None  # all of the new length is read
    after = extend(before, arguments.max_length, arguments.positions, arguments.decay)
    changes = report(before, after, arguments.positions, arguments.decay)
    output = write_folder(
        after,
        load_tokenizer(folder),
        arguments.output,
        settings=settings,
        card=Card(about=About(text=f"## Extended\n\n{changes}")),
        extra_files=read_records(folder, ("training.json",)),
    )
    print(f"{changes}\n\nwrote {output}")


if __name__ == "__main__":
    command_line(main, "warm_start")
