"""What a source of pretraining gives: examples to train on, others to evaluate with, and what identifies them."""

import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..settings import SHORTEST_TOKENS
from .text_examples import LocalExamples
from .text_files import split_files
from .text_sources import Source
from .token_store import HELD_OUT_SHARE, TokenStore, held_out_limit, open_store, text_hash

logger = logging.getLogger(__name__)


class Examples(Protocol):
    """One process's examples of a source, without end, of either kind (see text_examples)."""

    def take(self, kind: str, count: int) -> list[np.ndarray]:
        """The next ones: token ids, int32, special tokens included."""
        ...

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """How often each token occurs, as far as that is known beforehand; (vocab_size,)."""
        ...

    def state(self) -> dict:
        """The position; goes through JSON."""
        ...

    def restore(self, state: dict):
        """Go on from a position."""
        ...


@dataclass
class SourceData:
    """An open source. The description goes through JSON, and differs for other text or other shares."""

    source: Source
    train: Examples
    validation: Examples
    description: dict


def open_source(source: Source, settings, tokenizer, *, seed: int, rank: int, world: int) -> SourceData:
    """Open a source; local text is tokenised into `settings.token_cache` on the first time.

    Args:
        settings: max_tokens, token_cache.
        rank, world: which share of the training examples is this process's. Validation is the same on all.
    """
    number = zlib.crc32(source.name.encode())  # its random choices are its own, whatever other sources there are
    open_it = open_streamed if source.on_hub else open_local
    train, validation, identity = open_it(source, settings, tokenizer, (seed, number), rank, world)
    splits = {"split": source.split, "validation_split": source.validation_split}
    return SourceData(source, train, validation, {**splits, **source.shares, **identity})


def open_local(source: Source, settings, tokenizer, seed: tuple[int, int], rank: int, world: int):
    report_left_out(source)
    store = open_store(source.files(source.split), tokenizer, settings.token_cache)
    identity = {"tokens_sha256": store.fingerprint}
    if source.validation_split is None:
        store, held_out = store.carve(source.name)
        logger.info("%s: %d documents (%g %%, by hash) carved out for validation", source.name, len(held_out.starts),
                    100 * HELD_OUT_SHARE)  # fmt: skip
    else:
        held_out = open_store(source.files(source.validation_split), tokenizer, settings.token_cache)
        identity["held_out_sha256"] = held_out.fingerprint
    report_lengths(source.name, store, settings.max_tokens)
    train = LocalExamples(source.name, store, settings.max_tokens, tokenizer, seed, rank, world)
    validation = LocalExamples(f"{source.name}, held out", held_out, settings.max_tokens, tokenizer, (0, seed[1]))
    return train, validation, identity


def report_left_out(source: Source):
    """Log how many files of the splits are not read, since they are of another type than those that are."""
    splits = [source.split, *filter(None, [source.validation_split])]
    read = [path for split in splits for path in source.files(split).files]
    found = [path for split in splits for path in split_files(source.path, split) if path not in read]
    if found and source.path.is_dir():
        names = ", ".join(path.name for path in found[:3]) + (" .." if len(found) > 3 else "")
        logger.warning("%s: %d files read, %d left out for their type (%s)", source.name, len(read), len(found), names)


def report_lengths(name: str, store: TokenStore, max_tokens: int):
    """Log how many documents no single example can hold (nothing of them is lost) and how many are not used alone."""
    logger.info(
        "%s: %d documents, %d tokens; %d longer than %d tokens are read in parts (variable: one passage, maximum: "
        "successive rows), %d too short for a variable-length example",
        name, len(store.lengths), store.lengths.sum(), (store.lengths + 2 > max_tokens).sum(), max_tokens,
        (store.lengths + 2 < SHORTEST_TOKENS).sum(),
    )  # fmt: skip


def open_streamed(source: Source, settings, tokenizer, seed: tuple[int, int], rank: int, world: int):
    from . import hub_data

    def stream(split: str, seed: tuple[int, ...], keep: Callable[[str], bool], rank: int, world: int, spread=False):
        rows = hub_data.open_stream(source, split, rank, world)
        return hub_data.StreamedExamples(rows, source, settings.max_tokens, tokenizer, seed, keep, spread)

    def everything(text: str) -> bool:
        return True

    def is_held_out(text: str) -> bool:
        return text_hash(text) < held_out_limit()

    def is_trained_on(text: str) -> bool:
        return not is_held_out(text)

    carve = source.validation_split is None
    logger.info("%s: streamed; documents longer than %d tokens are read in parts", source.name, settings.max_tokens)
    train = stream(source.split, (*seed, rank), is_trained_on if carve else everything, rank, world)
    held_out_split = source.split if carve else source.validation_split
    validation = stream(held_out_split, (0, seed[1], 0), is_held_out if carve else everything, 0, 1, spread=True)
    return train, validation, {"path": source.path, "config": source.config, "revision": source.revision}
