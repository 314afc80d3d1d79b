"""The pretraining mixture: sources and lengths in given shares, batches of equal token budget, masked; and the held-out
loss, perplexity and accuracy, per source and per length.

Examples are drawn window by window. A window holds a little more than its batches need, in exactly the shares of the
mixture (up to rounding, which the next window makes good); it is sorted by length, cut into batches, and the batches
are shuffled. So a short example shares its batch with short ones.
"""

import logging
import math
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.nn.utils.rnn import pad_sequence

from ..distributed import sum_over_processes
from ..settings import SHORTEST_TOKENS
from .examples import LocalExamples, StreamedExamples, is_long_enough, open_stream, random_generator
from .sources import Source, split_files
from .tokens import HELD_OUT_LIMIT, TokenStore, open_store, text_hash

logger = logging.getLogger(__name__)

WINDOW_BATCHES = 16
IGNORE = -100  # label of a token that is not predicted
HELD_OUT_PROBABILITY = 0.15  # of masking (paper section A.3)
SMALLEST_BUCKET_TOKENS = 128
LARGEST_LOSS = 700.0  # whose exponential is a number


class SourceData(NamedTuple):
    """An open source. Its description differs for other text or other shares, and goes through JSON."""

    source: Source
    train: LocalExamples | StreamedExamples
    validation: LocalExamples | StreamedExamples
    description: dict


def open_source(source: Source, settings, tokenizer, *, seed: int, rank: int, world: int, stores=None) -> SourceData:
    """Open a source for the process `rank` of `world`; its validation is the same on all. Local text is tokenized into
    `settings.token_cache` the first time, unless `stores`, of `tokenize_source`, were made beforehand."""
    number = zlib.crc32(source.name.encode())  # its random choices are its own, whatever other sources there are
    splits = {"split": source.split, "validation_split": source.validation_split} | source.shares
    carve = source.validation_split is None
    if source.on_hub and stores is None:
        limit = HELD_OUT_LIMIT if carve else 0
        rows = open_stream(source, source.split, tokenizer, lambda text: text_hash(text) >= limit, rank, world)
        train = StreamedExamples(rows, source.name, settings.max_tokens, tokenizer, (seed, number, rank))
        split = source.validation_split or source.split
        rows = open_stream(source, split, tokenizer, lambda text: not carve or text_hash(text) < limit, 0, 1)
        validation = StreamedExamples(rows, source.name, settings.max_tokens, tokenizer, (0, number, 0), spread=True)
        identity = {"path": source.path, "config": source.config, "revision": source.revision}
        return SourceData(source, train, validation, splits | identity)
    store, *others = stores or tokenize_source(source, tokenizer, settings.token_cache)
    identity = {"tokens_sha256": store.fingerprint}
    if carve:
        store, held_out = store.carve()
    else:
        (held_out,) = others
        identity["held_out_sha256"] = held_out.fingerprint
    logger.info(
        "%s: %d documents, %d tokens; %d longer than %d tokens are read in parts, %d give no passage; %d held out",
        source.name, len(store.lengths), store.lengths.sum(), (store.lengths + 2 > settings.max_tokens).sum(),
        settings.max_tokens, (~is_long_enough(store.lengths)).sum(), len(held_out.lengths),
    )  # fmt: skip
    train = LocalExamples(source.name, store, settings.max_tokens, tokenizer, (seed, number), rank, world)
    validation = LocalExamples(f"{source.name}, held out", held_out, settings.max_tokens, tokenizer, (0, number))
    return SourceData(source, train, validation, splits | identity)


def tokenize_source(source: Source, tokenizer, cache: str) -> list[TokenStore]:
    """Return the stores of a local source: of its split, and of its validation split if it has one."""
    splits = source.splits()
    for split, texts in splits.items():
        if left := [path.name for path in split_files(source.path, split) if path not in texts.files]:
            logger.warning("%s: %d files left out for their type (%s)", source.name, len(left), ", ".join(left[:3]))
    return [open_store(texts, tokenizer, cache) for texts in splits.values()]


class Masking:
    """The masked-language-model task: which tokens are hidden, and as what (Devlin et al., 2019). Special tokens are
    never chosen and never a replacement."""

    def __init__(self, tokenizer):
        for name in ("cls_token", "sep_token", "mask_token", "pad_token"):
            if getattr(tokenizer, name) is None:
                raise ValueError(f"the tokenizer has no {name}, which masked-language modeling needs; use another one")
        self.mask_id, self.pad_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        self.replacements = np.setdiff1d(list(tokenizer.get_vocab().values()), tokenizer.all_special_ids)
        self.is_ordinary = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=bool)
        self.is_ordinary[self.replacements] = True

    def batch(self, rows: list[np.ndarray], probability: float, generator: np.random.Generator) -> dict:
        """Choose `probability` of the ordinary tokens, at least one; of these 80 % become [MASK], 10 % a random token,
        10 % stay. Rows are token ids with special tokens, of any lengths.

        Returns:
            input_ids, attention_mask, labels (IGNORE where not predicted), all (B, L) int64, padded on the right.
        """
        lengths = np.array([len(row) for row in rows])
        attention = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        ids = np.full(attention.shape, self.pad_id, dtype=np.int64)
        ids[attention.astype(bool)] = np.concatenate(rows)
        ordinary = self.is_ordinary[ids]
        chosen = np.flatnonzero((generator.random(ids.shape, dtype=np.float32) < probability) & ordinary)
        if not len(chosen):
            chosen = np.flatnonzero(ordinary)[:1]
        labels = np.full_like(ids, IGNORE)
        labels.flat[chosen] = ids.flat[chosen]
        action = generator.random(len(chosen))
        random_tokens = generator.choice(self.replacements, len(chosen))
        hidden = np.where(action < 0.8, self.mask_id, np.where(action < 0.9, random_tokens, ids.flat[chosen]))
        ids.flat[chosen] = hidden
        tensors = {"input_ids": ids, "attention_mask": attention, "labels": labels}
        return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}


class Example(NamedTuple):
    """Token ids with special tokens, and where they come from."""

    ids: np.ndarray
    source: str
    kind: str


class MixtureBatches:
    """One process's masked batches, endless; for `run_loop`.

    A batch is a function of (seed, step, rank) and the data. With local data the position regenerates the very window
    it lies in, so that a resumed run sees the same batches bit for bit.
    """

    def __init__(self, data: list[SourceData], settings, masking: Masking, *, seed: int, rank: int):
        self.data, self.settings, self.masking, self.seed, self.rank = data, settings, masking, seed, rank
        longest, shortest = settings.max_tokens, SHORTEST_TOKENS
        log_uniform = (longest - shortest) / math.log(longest / shortest) if longest > shortest else shortest
        mean = {"maximum": longest, "variable": log_uniform}
        tokens = sum(share * mean[kind] for one in data for kind, share in one.source.shares.items())
        self.window_examples = math.ceil(WINDOW_BATCHES * settings.batch_tokens / tokens)
        self.thread, self.ahead = ThreadPoolExecutor(1), None  # makes the next window while this one is used
        self.restore({"step": 0, "window": 0, "offset": 0, "sources": [one.train.state() for one in data]})

    def next_batch(self) -> list[dict]:
        """Return the forwards of one step: input_ids, attention_mask, labels (B, L) int64, and `counts`: examples and
        tokens (special ones included, padding not) of each source and kind."""
        self.step += 1
        forwards = []
        for micro in range(self.settings.accumulate):
            while self.batches is None or self.offset == len(self.batches):
                if self.batches is not None:
                    self.window, self.offset = self.window + 1, 0
                ahead = self.ahead or self.thread.submit(self.make_window, self.window)
                self.window_start, self.batches = ahead.result()
                self.ahead = self.thread.submit(self.make_window, self.window + 1)
            examples = self.batches[self.offset]
            self.offset += 1
            generator = random_generator("mask", self.seed, self.step, self.rank, micro)
            batch = self.masking.batch([e.ids for e in examples], self.settings.mask_probability, generator)
            counts = Counter()
            for example in examples:
                counts[f"examples/{example.source}/{example.kind}"] += 1
                counts[f"tokens/{example.source}/{example.kind}"] += len(example.ids)
            forwards.append(batch | {"counts": dict(counts)})
        return forwards

    def make_window(self, window: int) -> tuple[list[dict], list[list[Example]]]:
        """Return the positions of the sources before a window, and its batches."""
        start, examples, size = [one.train.state() for one in self.data], [], self.window_examples
        for one in self.data:
            for kind, share in one.source.shares.items():
                # but for the rounding errors of sums like 0.1 + 0.2
                first, last = (math.floor(number * size * share + 1e-6) for number in (window, window + 1))
                if last > first:
                    examples += [Example(ids, one.source.name, kind) for ids in one.train.take(kind, last - first)]
        generator = random_generator("window", self.seed, self.rank, window)
        shuffled = [examples[i] for i in generator.permutation(len(examples))]
        batches = cut_by_length(shuffled, self.settings.batch_tokens)
        return start, [batches[i] for i in generator.permutation(len(batches))]

    def state(self) -> dict:
        """Return the position."""
        return {"step": self.step, "window": self.window, "offset": self.offset, "sources": self.window_start}

    def restore(self, state: dict):
        """Go on from a position."""
        if self.ahead:
            self.ahead.result()  # it moves the sources
        self.step, self.window, self.offset = state["step"], state["window"], state["offset"]
        self.window_start, self.batches, self.ahead = state["sources"], None, None
        for one, position in zip(self.data, self.window_start, strict=True):
            one.train.restore(position)


def cut_by_length(examples: list[Example], batch_tokens: int) -> list[list[Example]]:
    """Return batches of neighbors in length, each of as many rows as fit: rows x longest <= batch_tokens."""
    batches, batch = [], []
    for example in sorted(examples, key=lambda example: len(example.ids)):
        if batch and (len(batch) + 1) * len(example.ids) > batch_tokens:
            batches.append(batch)
            batch = []
        batch.append(example)
    return [*batches, batch] if batch else batches


def observed_shares(data: list[SourceData], totals: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return of each SOURCE/KIND the share wanted, and the shares of examples and of tokens that a run has seen."""
    names = {f"{one.source.name}/{kind}": share for one in data for kind, share in one.source.shares.items() if share}
    sums = {what: sum(totals.get(f"{what}/{name}", 0) for name in names) for what in ("examples", "tokens")}
    return {
        name: {"wanted": wanted}
        | {what: round(totals.get(f"{what}/{name}", 0) / max(total, 1), 4) for what, total in sums.items()}
        for name, wanted in names.items()
    }


def held_out_examples(data: list[SourceData], count: int) -> list[Example]:
    """Return `count` validation examples of every source and kind in the mixture, always the same.

    Raises:
        ValueError: there is no example at all. A source or kind without one is a warning.
    """
    examples = []
    for one in data:
        for kind in (kind for kind, share in one.source.shares.items() if share):
            try:
                taken = one.validation.take(kind, count)
            except ValueError as error:
                logger.warning("no held-out %s examples of %s; %s", kind, one.source.name, error)
                continue
            examples += [Example(ids, one.source.name, kind) for ids in taken]
    if not examples:
        raise ValueError("no source has enough validation text for a single held-out example; add some")
    return examples


class HeldOut:
    """Evaluate on the same examples, masked the same way, every time, in forwards of `batch_tokens` padded tokens."""

    def __init__(self, examples: list[Example], batch_tokens: int, masking: Masking):
        self.groups = sorted({group for example in examples for group in groups_of(example)})
        masked = {}
        for number, example in enumerate(examples):  # one by one: the masks do not depend on the batches
            generator = random_generator("held-out", number)
            masked[id(example)] = masking.batch([example.ids], HELD_OUT_PROBABILITY, generator)
        fill = {"input_ids": masking.pad_id, "attention_mask": 0, "labels": IGNORE}
        self.batches = []
        for rows in cut_by_length(examples, batch_tokens):
            tensors = {name: [masked[id(row)][name][0] for row in rows] for name in fill}
            batch = {name: pad_sequence(tensors[name], batch_first=True, padding_value=fill[name]) for name in fill}
            self.batches.append((rows, batch))

    @torch.no_grad()
    def evaluate(self, model, accelerator: Accelerator) -> dict[str, float]:
        """Return the mean loss of the masked tokens, its exponential, and the fraction predicted right.

        Over all examples, as NAME/SOURCE, and as NAME/tokens_N for examples of at most N tokens and more than a quarter
        of N. The metrics are the same on all processes.
        """
        sums = np.zeros((len(self.groups), 3))  # loss, right ones, tokens
        world, last = accelerator.num_processes, len(self.batches) - 1
        for index in range(accelerator.process_index, -(-len(self.batches) // world) * world, world):
            # all processes run equally many forwards, since a sharded model needs them all
            rows, batch = self.batches[min(index, last)]
            batch = send_to_device(batch, accelerator.device)
            logits = model(**batch).logits.float()  # (masked tokens, V)
            masked = batch["labels"] != IGNORE
            labels = batch["labels"][masked]
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            values = torch.stack([losses, (logits.argmax(-1) == labels).float(), torch.ones_like(losses)], dim=1)
            found = torch.zeros(len(masked), 3, dtype=torch.float64)  # of every row
            found.index_add_(0, masked.nonzero()[:, 0].cpu(), values.double().cpu())
            for row, row_sums in zip(rows, found.numpy(), strict=True) if index <= last else ():
                for group in groups_of(row):
                    sums[self.groups.index(group)] += row_sums
        sums = np.reshape(sum_over_processes(sums.ravel().tolist()), sums.shape)
        metrics = {}
        for group, (loss, right, tokens) in zip(self.groups, sums.tolist(), strict=True):
            metrics[f"held_out_loss{group}"] = loss / tokens
            metrics[f"held_out_perplexity{group}"] = float(np.exp(min(loss / tokens, LARGEST_LOSS)))
            metrics[f"held_out_accuracy{group}"] = right / tokens
        return metrics


def groups_of(example: Example) -> tuple[str, str, str]:
    """Return the suffixes of the metrics that an example counts in."""
    bucket = SMALLEST_BUCKET_TOKENS
    while bucket < len(example.ids):
        bucket *= 4
    return "", f"/{example.source}", f"/tokens_{bucket}"
