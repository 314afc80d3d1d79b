"""Train with attention in place of the long convolution, and without any layer: what is the convolution worth?

    python experiments/replicas/twins.py --mixer {long-conv,attention,none} [--record FILE] ENTRY [key=value ...]

runs an entry point (opl, mlm or align) with the sequence mixer replaced; `none` is num_hidden_layers=0. What attention
has learned is no M2-BERT: `attention_encoder` alone reads its folder. The record, one JSON object, goes to the screen
and to FILE.
experiments/replicas/twins.sh, and twins.sh and mixers.sh of experiments/m2bert_mini, run the comparisons.
"""

import argparse
import json
import sys
from collections import Counter
from contextlib import contextmanager, nullcontext
from math import log2
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from twin_runs import LOSS, MIXERS, NDCG, RATES

from m2bert.eval.encoders import sentence_transformer
from m2bert.terminal import run_command
from m2bert.train import align_run, initialization, mlm_run, retrieval_run, trainer
from modeling_m2bert import modeling_m2bert
from modeling_m2bert.m2bert_layers import M2BertMixer
from modeling_m2bert.m2bert_ops_torch_conv import transform_length
from modeling_m2bert.m2bert_packing import Rows

ENTRIES = {"opl": retrieval_run, "mlm": mlm_run, "align": align_run}
HEAD = 32  # channels of an attention head
ROTARY_BASE = 10_000
SCORES = (NDCG, LOSS, "held_out_accuracy", "chunk_cosine", "query_cosine", "piece_cosine")
convolution_identity_ = initialization.identity_layer_


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- attention in the mixer's place ---


def attention_width(config) -> int:
    """Return the width A of queries, keys and values together: the whole heads whose 4 H A + H parameters come nearest
    to those of the convolutional mixer."""
    wanted = parameters(M2BertMixer(config)) - config.hidden_size
    return HEAD * max(1, round(wanted / (4 * config.hidden_size * HEAD)))


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Apply rotary positions: channels c and c + d / 2 turn together. x (T, .., d), positions (T,) -> (T, .., d)."""
    half = x.shape[-1] // 2
    speeds = ROTARY_BASE ** -(torch.arange(half, device=x.device) / half)
    angles = (positions[:, None] * speeds).view(len(x), *[1] * (x.dim() - 2), half)
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


class AttentionMixer(nn.Module):
    """y = x + out_proj(attention(x)): the tokens of a row see each other and nothing else. Called as M2BertMixer is.

    Args:
        window: tokens of a row see those of their window of so many alone, if set.
    """

    def __init__(self, config, cache=None, window: int | None = None):
        super().__init__()
        self.window = window
        hidden, width = config.hidden_size, attention_width(config)
        self.in_proj = nn.Linear(hidden, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, hidden)

    def forward(self, hidden_states: Tensor, rows: Rows) -> Tensor:
        """(T, H) -> (T, H); padding, where there is any, is not seen, and receives out_proj's bias alone."""
        spans = rows.offsets.diff().tolist()
        positions = torch.cat([torch.arange(span, device=hidden_states.device) for span in spans])
        query, key, value = self.in_proj(hidden_states).unflatten(1, (3, -1, HEAD)).unbind(1)  # (T, A / d, d)
        stacked = torch.stack([rotate(query, positions), rotate(key, positions), value])
        mixed = []
        for row, length in zip(stacked.split(spans, dim=1), rows.lengths.tolist(), strict=True):
            windows = row[:, None, :length].transpose(2, 3).split(self.window or length, dim=3)  # (3, 1, A / d, n, d)
            attended = torch.cat([nn.functional.scaled_dot_product_attention(*each)[0] for each in windows], dim=1)
            attended = attended.transpose(0, 1).flatten(1)
            mixed.append(nn.functional.pad(attended, (0, 0, 0, row.shape[1] - length)))
        return hidden_states + self.out_proj(torch.cat(mixed))


@torch.no_grad()
def identity_layer_(layer) -> None:
    """Make a layer the identity, as m2bert.train.initialization does, whichever mixer it has. Queries, keys and values
    start with a standard deviation of H^(-1/2): at the 0.02 of wide models attention is uniform for longer."""
    if isinstance(layer.mixer, M2BertMixer):
        return convolution_identity_(layer)
    nn.init.normal_(layer.mixer.in_proj.weight, std=layer.mixer.in_proj.in_features**-0.5)
    for zero in (*layer.mixer.out_proj.parameters(), layer.mlp.down.weight, layer.mlp.down.bias):
        zero.zero_()


# --- floating-point operations, by formula ---


def transform_flops(config, length: int) -> float:
    """Count those of a real Fourier transform of all channels as 5 N log2(N), twice what it needs."""
    n = 2 * transform_length(length)
    return config.hidden_size * 5 * n * log2(n)


def mixer_flops(config, mixer: str, length: int) -> float:
    """Count those of one mixer, forward, on a row. A multiplication and an addition are two."""
    hidden = config.hidden_size
    if mixer == "attention":
        width = attention_width(config)
        return 2 * length * (4 * hidden * width + 2 * length * width)
    transforms = (4 if config.residual_long_conv else 2) * transform_flops(config, length)
    return 2 * length * (4 * hidden * hidden + 3 * 3 * hidden) + transforms


def filter_flops(config, taps: int) -> float:
    """Count those of the long filters of one mixer, per forward, whatever its rows: sine networks and transforms."""
    order = config.filter_order
    network = 2 * taps * 2 * order * (config.filter_embedding_size + 2 * order + config.hidden_size)
    return (2 if config.residual_long_conv else 1) * (network + transform_flops(config, taps))


def training_flops(config, mixer: str, seen: dict[str, Counter], masked_tokens: float) -> float:
    """Count those of a run on the rows `seen` (how often a length, how often a longest row of a forward), the backward
    pass as two forward passes. Losses, norms and lookups are left out; without `masked_tokens` there is a pooler in
    place of the masked-LM head."""
    hidden, tokens = config.hidden_size, sum(length * times for length, times in seen["lengths"].items())
    layer = tokens * 2 * 3 * hidden * config.intermediate_size / config.num_blocks
    layer += sum(times * mixer_flops(config, mixer, length) for length, times in seen["lengths"].items())
    if mixer == "long-conv":
        layer += sum(times * filter_flops(config, longest) for longest, times in seen["longest"].items())
    head = masked_tokens * 2 * hidden * (hidden + config.vocab_size)
    if not masked_tokens:
        head = tokens * 2 * config.num_pooling_heads * hidden * (2 if config.contextual_pooling else 1)
    return 3 * (config.num_hidden_layers * layer + head)


# --- a run ---


@contextmanager
def twin(mixer: str, seen: dict[str, Counter]):
    """Give this mixer to models made meanwhile, and count the rows that are trained on. Packages look these names up
    when they call them."""
    pack_rows = modeling_m2bert.pack_rows

    def count_rows(*arguments):
        packing = pack_rows(*arguments)
        if torch.is_grad_enabled():
            seen["lengths"].update(packing.rows.lengths.tolist())
            seen["longest"].update([packing.rows.longest])
        return packing

    replaced = patch.object(modeling_m2bert, "M2BertMixer", AttentionMixer) if mixer == "attention" else nullcontext()
    counted = patch.object(modeling_m2bert, "pack_rows", count_rows)
    with replaced, counted, patch.object(initialization, "identity_layer_", identity_layer_):
        yield


def compact_record(model, mixer: str, config, record: dict, seen: dict[str, Counter]) -> dict:
    """Return what the comparison needs of a run; raise RuntimeError if the model has other mixers than it should."""
    layers = model.base_model.layers
    kind = AttentionMixer if mixer == "attention" else M2BertMixer
    if (mixer == "none") != (len(layers) == 0) or any(type(layer.mixer) is not kind for layer in layers):
        raise RuntimeError(f"the model's mixers are {[type(layer.mixer) for layer in layers]}, not {mixer}")
    history, totals = record["history"], record["totals"]
    seconds = history[-1]["seconds"] - sum(row.get("evaluation_seconds", 0) for row in history)
    tokens = int(totals.get("tokens", 0))
    flops = training_flops(model.config, mixer, seen, totals.get("masked_tokens", 0))
    return {
        "mixer": mixer,
        **{rate: getattr(config.optim, rate) for rate in RATES},
        "seed": config.seed,
        "steps": config.steps,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / max(seconds, 0.01)),
        "flops": round(flops),
        "flops_per_token": round(flops / max(tokens, 1)),
        "mixer_parameters": parameters(layers[0].mixer) if len(layers) else 0,
        "parameters": model.num_parameters(),
        "scores": {name: value for name, value in history[-1].items() if name.startswith(SCORES)},
        "losses": [[row["step"], round(row["loss"], 4)] for row in history if "loss" in row],
    }


def run(mixer: str, entry: str, argv: list[str]) -> dict:
    """Run an entry point and return its compact record."""
    module, seen, found = ENTRIES[entry], {"lengths": Counter(), "longest": Counter()}, {}
    write = trainer.finish

    def finish(accelerator, model, tokenizer, config, record):
        found.update(entry=entry, **compact_record(accelerator.unwrap_model(model), mixer, config, record, seen))
        write(accelerator, model, tokenizer, config, record)

    layer_free = ["model.architecture.num_hidden_layers=0"] if mixer == "none" else []
    with twin(mixer, seen), patch.object(trainer, "finish", finish):
        module.main([*argv, *layer_free])
    return found


def attention_encoder(folder: str, window: int):
    """Return the encoder of a folder that a run with attention wrote. It attends within windows of so many tokens."""
    mismatched = {"ignore_mismatched_sizes": True}  # the convolution's weights, which are replaced
    model = SentenceTransformer(folder, trust_remote_code=True, model_kwargs=mismatched)
    inner = model[0].model
    for layer in inner.layers:
        layer.mixer = AttentionMixer(inner.config, window=window)
    inner.load_state_dict(load_file(Path(folder, "model.safetensors")))
    with patch.object(sentence_transformer, "load_model", lambda *_: model):
        return sentence_transformer.SentenceTransformerEncoder(folder)


def main(argv: list[str]):
    parser = argparse.ArgumentParser(prog="twins", allow_abbrev=False)
    parser.add_argument("--mixer", choices=MIXERS, required=True)
    parser.add_argument("--record", type=Path)
    parser.add_argument("entry", choices=ENTRIES)
    arguments, rest = parser.parse_known_args(argv)
    record = run(arguments.mixer, arguments.entry, rest)
    print(json.dumps(record))
    if arguments.record:
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    run_command("twins", lambda: main(sys.argv[1:]))
