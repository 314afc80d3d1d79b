"""Warm start (paper section 4.2): a trained model with more positions, to be trained on longer texts.

    python -m m2bert.train.warm_start --model DIR --max-length 32768 --output DIR
        [--positions replicate|interpolate] [--decay keep|stretch]

A model with N positions has a table of position embeddings (N, H). Each of its long filters has N taps, made from
positional features (N, E) and times (N,). Two options say how they grow to M > N positions:

- `--positions replicate` (default) repeats the position embeddings until there are M rows, as the paper does.
- `--positions interpolate` stretches the table to M rows by linear interpolation. This changes every row.
- `--decay keep` (default) keeps the N taps and adds more. Times continue with their own step, so the decay per token
  stays the same. Features continue by the formula of their initialization, at the speed of the present features
  (`tap_speed`). Training has moved the present rows away from that formula; new rows follow the formula alone.
- `--decay stretch` interpolates features and times to M taps, and scales `filter_decay_length` alike. So a filter
  reaches M / N times as far. Tap values are not rescaled: the taps of a smooth filter then have M / N times the sum.

With `replicate` and `keep`, outputs for up to N tokens stay the same. `interpolate` and `stretch` change every vector.
A model may be extended repeatedly: with `keep` its filters depend only on the final length, not on those between.
"""

import argparse
import copy
import math
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from m2bert.hub.card import About, Card
from m2bert.hub.checkpoint import load_checkpoint, load_tokenizer
from m2bert.hub.folder import check_output, read_records, write_folder
from m2bert.hub.sentence_files import read_sentence_files
from m2bert.terminal import run_command

MAX_DRIFT = 1.25  # factor by which training may have changed the growth of the features from tap to tap


def replicate(table: Tensor, length: int) -> Tensor:
    """Repeat the rows: (N, C) -> (length, C)."""
    return table.repeat(math.ceil(length / len(table)), 1)[:length]


def resample(table: Tensor, length: int) -> Tensor:
    """Interpolate linearly between rows: (N, C) -> (length, C). The first and the last row stay the same."""
    rows = F.interpolate(table.double().T[None], size=length, mode="linear", align_corners=True)
    return rows[0].T.to(table.dtype).contiguous()


POSITIONS = {"replicate": replicate, "interpolate": resample}
DECAYS = ("keep", "stretch")


@torch.no_grad()
def extend(
    model: PreTrainedModel, max_length: int, positions: str = "replicate", decay: str = "keep"
) -> PreTrainedModel:
    """Return a copy of any M2-BERT with `max_length` positions, as the module describes."""
    old = model.config.max_position_embeddings
    if max_length <= old:
        raise ValueError(f"max_length={max_length} is not more than the {old} positions that the model has; name more")
    grow = POSITIONS[positions]
    model = copy.deepcopy(model)
    embeddings = model.base_model.embeddings.position_embeddings
    if embeddings is not None:
        trains = embeddings.weight.requires_grad
        embeddings.weight = torch.nn.Parameter(grow(embeddings.weight, max_length), requires_grad=trains)
        embeddings.num_embeddings = max_length
    for layer in model.base_model.layers:
        for module in (layer.mixer.filter, layer.mixer.residual_filter):
            if module is not None:
                features, time = module.positional_features, module.time
                if decay == "stretch":
                    longer, module.time = resample(features, max_length), resample(time[:, None], max_length)[:, 0]
                else:
                    longer = continue_features(features, tap_speed(features, time), max_length)
                    mean_step = (time[-1] - time[0]).double() / max(old - 1, 1)
                    steps = torch.arange(1, max_length - old + 1, dtype=torch.float64, device=time.device)
                    module.time = torch.cat([time, (time[-1].double() + mean_step * steps).to(time)])
                module.positional_features = torch.nn.Parameter(longer, requires_grad=features.requires_grad)
    model.config.max_position_embeddings = max_length
    if decay == "stretch":
        steps = (model.config.filter_decay_length - 1) * (max_length - 1) / max(old - 1, 1)
        model.config.filter_decay_length = 1 + round(steps)
    return model


def tap_speed(features: Tensor, time: Tensor) -> float:
    """Return the speed of a filter's features: how much the first feature grows from tap to tap.

    The first feature of tap t is t / (P - 1) in a new model of P positions. P need not be the number of rows, since
    `keep` adds rows at the old speed.

    If `filter_decay_length` was left at its default, the first feature began as a copy of the time. Training changes
    the feature, but not the time. So the speed is that of the time. But `filter_decay_length` may have been chosen
    freely. So if the features disagree by more than MAX_DRIFT, the speed is theirs: the median over the taps.
    """
    if len(time) == 1:
        return 1.0
    steps = torch.arange(1, len(time), dtype=torch.float64, device=time.device)
    speed = float((features[1:, 0].double() / steps).median())
    speed_of_time = float((time[-1] - time[0]).double() / (len(time) - 1))
    agree = speed_of_time / MAX_DRIFT < speed < speed_of_time * MAX_DRIFT
    return speed if speed > 0 and not agree else speed_of_time


def continue_features(features: Tensor, speed: float, length: int) -> Tensor:
    """Continue features as a new model of P = 1 + 1 / speed positions has them: (N, E) -> (length, E).

    Row t >= N is [t / (P - 1), cos(f w_t) .., -sin(f w_t) ..], w_t = 2 pi t / P, with (E - 1) / 2 frequencies f spread
    evenly from 1e-4 upwards.
    """
    old, size = features.shape
    bands = (size - 1) // 2
    steps = torch.arange(old, length, dtype=torch.float64)[:, None]
    frequencies = torch.linspace(1e-4, max(bands - 1, 1e-4), bands, dtype=torch.float64)
    angles = frequencies * (2 * math.pi * steps / (1 + 1 / speed))
    rows = torch.cat([steps * speed, angles.cos(), -angles.sin()], dim=1)
    return torch.cat([features, rows.to(features)])


def report(before: PreTrainedModel, after: PreTrainedModel, positions: str, decay: str) -> str:
    """Describe in Markdown what `extend` changed, and whether the outputs for inputs of the old length are the same."""
    old, new = before.config, after.config
    rows = [
        ("longest input, tokens", old.max_position_embeddings, new.max_position_embeddings, ""),
        ("`filter_decay_length`, tokens", old.filter_decay_length, new.filter_decay_length, ""),
        ("parameters", f"{before.num_parameters():,}", f"{after.num_parameters():,}", ""),
    ]
    ratio = f"{new.max_position_embeddings / old.max_position_embeddings:g}"
    filter_change = "first taps kept, more by the formula" if decay == "keep" else f"stretched, {ratio} times"
    position_change = f"replicated, {ratio} times" if positions == "replicate" else "interpolated linearly"
    states = before.state_dict(), after.state_dict()
    for what, ending, change in (
        ("position embeddings", "position_embeddings.weight", position_change),
        ("filter features", "positional_features", filter_change),
        ("filter time", "filter.time", filter_change),
    ):
        names = [name for name in states[0] if name.endswith(ending)]
        if names:
            shapes = [" x ".join(map(str, state[names[0]].shape)) for state in states]
            rows.append((f"{what}, {len(names)} tensors", *shapes, change))
    moved = []
    if positions == "interpolate":
        moved.append("position embeddings")
    if decay == "stretch" and old.num_hidden_layers > 0:
        moved.append("filters")
    if moved:
        what = " and ".join(moved)
        effect = f"The {what} moved: all outputs differ from the original's, also on short inputs. Train it."
    else:
        padded = "" if old.padding == "masked" else ", padded as far as before,"
        effect = (
            f"Inputs of up to {old.max_position_embeddings} tokens{padded} have the outputs of the model that was "
            "extended, up to rounding. Longer inputs need training."
        )
    lines = ["| | before | after | |", "|---|---|---|---|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]
    return "\n".join([*lines, "", effect])


def main(argv: list[str]):
    parser = argparse.ArgumentParser(
        prog="warm_start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--positions", choices=POSITIONS, default="replicate")
    parser.add_argument("--decay", choices=DECAYS, default="keep")
    arguments = parser.parse_args(argv)
    disable_progress_bar()
    check_output(arguments.output, overwrite=False)
    before = load_checkpoint(arguments.model)
    folder = Path(arguments.model)
    settings = read_sentence_files(before, folder)  # also brings a trained Dense back into the model
    settings.max_tokens = None  # no limit but the new length
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
    run_command("warm_start", lambda: main(sys.argv[1:]))
