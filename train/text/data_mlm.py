"""The pretraining mixture: sources and lengths in given shares, batches of equal token budget, masked.

Examples are drawn window by window. A window holds a little more than its batches need, in exactly the shares of the
mixture (up to rounding, which the next window makes good); it is sorted by length, cut into batches, and the batches
are shuffled. So a short example shares its batch with short ones.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ..settings import SHORTEST_TOKENS
from .masking import Masking
from .source_data import SourceData
from .text_examples import random_generator

WINDOW_BATCHES = 16


class Example(NamedTuple):
    """Token ids with special tokens, and where they come from."""

    ids: np.ndarray
    source: str
    kind: str


class MixtureBatches:
    """One process's masked batches, endless; `Batches` of the training loop.

    A batch is a function of (seed, step, rank) and the data. With local data the position regenerates the very window
    it lies in, so that a resumed run sees the same batches bit for bit.

    Args:
        settings: max_tokens, batch_tokens (padded, of one forward), accumulate (forwards a step), mask_probability.
    """

    def __init__(self, data: list[SourceData], settings, masking: Masking, *, seed: int, rank: int):
        self.data, self.settings, self.masking, self.seed, self.rank = data, settings, masking, seed, rank
        self.window_examples = window_size(data, settings)
        self.thread, self.ahead = ThreadPoolExecutor(1), None  # makes the next window while this one is used
        self.restore({"step": 0, "window": 0, "offset": 0, "sources": [one.train.state() for one in data]})

    def next_batch(self) -> list[dict]:
        """The forwards of one step: input_ids, attention_mask, labels (B, L) int64, and `counts`: examples and tokens
        (special ones included, padding not) of each source and kind."""
        self.step += 1
        return [self.micro_batch(micro) for micro in range(self.settings.accumulate)]

    def micro_batch(self, micro: int) -> dict:
        while self.batches is None or self.offset == len(self.batches):
            self.next_window()
        examples = self.batches[self.offset]
        self.offset += 1
        generator = random_generator("mask", self.seed, self.step, self.rank, micro)
        batch = self.masking.batch([e.ids for e in examples], self.settings.mask_probability, generator)
        return batch | {"counts": count(examples)}

    def next_window(self):
        if self.batches is not None:
            self.window, self.offset = self.window + 1, 0
        ahead = self.ahead or self.thread.submit(self.make_window, self.window)
        self.window_start, self.batches = ahead.result()
        self.ahead = self.thread.submit(self.make_window, self.window + 1)

    def make_window(self, window: int) -> tuple[list[dict], list[list[Example]]]:
        """The positions of the sources before a window, and its batches."""
        start, examples, size = [one.train.state() for one in self.data], [], self.window_examples
        for one in self.data:
            for kind, share in one.source.shares.items():
                drawn = floor((window + 1) * size * share) - floor(window * size * share)
                if drawn:
                    examples += [Example(ids, one.source.name, kind) for ids in one.train.take(kind, drawn)]
        generator = random_generator("window", self.seed, self.rank, window)
        shuffled = [examples[i] for i in generator.permutation(len(examples))]
        batches = cut_by_length(shuffled, self.settings.batch_tokens)
        return start, [batches[i] for i in generator.permutation(len(batches))]

    def state(self) -> dict:
        return {"step": self.step, "window": self.window, "offset": self.offset, "sources": self.window_start}

    def restore(self, state: dict):
        if self.ahead:
            self.ahead.result()  # it moves the sources
        self.step, self.window, self.offset = state["step"], state["window"], state["offset"]
        self.window_start, self.batches, self.ahead = state["sources"], None, None
        for one, position in zip(self.data, self.window_start, strict=True):
            one.train.restore(position)


def floor(number: float) -> int:
    """Without the rounding errors of sums like 0.1 + 0.2."""
    return math.floor(number + 1e-6)


def window_size(data: list[SourceData], settings) -> int:
    """Examples of a window: WINDOW_BATCHES batches of the mixture's mean length."""
    longest, shortest = settings.max_tokens, SHORTEST_TOKENS
    log_uniform = (longest - shortest) / math.log(longest / shortest) if longest > shortest else shortest
    mean = {"maximum": longest, "variable": log_uniform}
    tokens = sum(share * mean[kind] for one in data for kind, share in one.source.shares.items())
    return math.ceil(WINDOW_BATCHES * settings.batch_tokens / tokens)


def cut_by_length(examples: list[Example], batch_tokens: int) -> list[list[Example]]:
    """Batches of neighbours in length, each of as many rows as fit: rows x longest <= batch_tokens."""
    batches, batch = [], []
    for example in sorted(examples, key=lambda example: len(example.ids)):
        if batch and (len(batch) + 1) * len(example.ids) > batch_tokens:
            batches.append(batch)
            batch = []
        batch.append(example)
    return [*batches, batch] if batch else batches


def count(examples: list[Example]) -> dict[str, int]:
    """`examples/SOURCE/KIND` and `tokens/SOURCE/KIND`."""
    counts = {}
    for example in examples:
        for name, amount in (("examples", 1), ("tokens", len(example.ids))):
            key = f"{name}/{example.source}/{example.kind}"
            counts[key] = counts.get(key, 0) + amount
    return counts


def observed_shares(data: list[SourceData], totals: dict[str, float]) -> dict[str, dict[str, float]]:
    """Of each SOURCE/KIND the share wanted, and the shares of examples and of tokens that a run has seen."""
    names = {f"{one.source.name}/{kind}": share for one in data for kind, share in one.source.shares.items() if share}
    sums = {what: sum(totals.get(f"{what}/{name}", 0) for name in names) for what in ("examples", "tokens")}
    return {
        name: {"wanted": wanted}
        | {what: round(totals.get(f"{what}/{name}", 0) / max(total, 1), 4) for what, total in sums.items()}
        for name, wanted in names.items()
    }
