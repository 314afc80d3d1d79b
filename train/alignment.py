"""Texts with a teacher's vectors of their stretches, and batches of these.

A document is cut into stretches of nearly equal length. The teacher reads every stretch alone, and a span of a few
words out of it, which stands for a query. It gives a vector of each, and of every piece of a stretch: its own late
chunks of a few tokens. The student reads a window of many stretches in one pass, and pools the same vectors from it.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .text.tokens import text_hash
from .verified_files import Arrays

logger = logging.getLogger(__name__)

SHARD_CHARS = 1_000_000  # of documents whose vectors are kept together: what a stopped run has to make again at most
FORMAT = 2
ALL_PIECES = 10**6  # more than a stretch has


class Teacher(Protocol):
    """What gives the vectors to learn, all of length 1."""

    def queries(self, texts: list[str]) -> np.ndarray:
        """Return the vectors of queries, (texts, W)."""

    def chunks(self, texts: list[str], piece_tokens: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the vectors of texts, (texts, W), those of pieces of at least `piece_tokens` tokens, the pieces of a
        text consecutive, and the number of pieces of each text, (texts,). None makes no pieces."""


class AlignedTexts(NamedTuple):
    """D documents as token ids without special tokens, and the teacher's vectors of their N stretches."""

    tokens: np.ndarray  # (T,) ids of all documents
    edges: np.ndarray  # (N + D,) int64: of each document, where its stretches begin, and its end
    first: np.ndarray  # (D + 1,) int64: where the edges of each document begin
    chunks: np.ndarray  # (N, W) float16, of length 1: the teacher's vectors of stretches
    spans: np.ndarray  # (N, 2) int64: first and last token + 1 of a span in each stretch
    queries: np.ndarray  # (N, W) float16: the teacher's vectors of spans
    pieces: np.ndarray  # (P, W) float16: the teacher's vectors of the pieces of all stretches
    piece_counts: np.ndarray  # (N,) int64: number of pieces of each stretch

    @property
    def counts(self) -> np.ndarray:
        """The number of stretches of each document, (D,)."""
        return np.diff(self.first) - 1


def stretch_edges(tokens: int, longest: int) -> np.ndarray:
    """Return where the fewest stretches of at most `longest` tokens begin, and the end; they are as equal as can be."""
    count = -(-tokens // longest)
    return np.arange(count + 1) * tokens // count


def draw_span(words: np.ndarray, start: int, end: int, lengths: tuple[int, int], generator) -> tuple[int, int]:
    """Return a span of whole words at a random place of the stretch [start, end).

    Args:
        words: (L,), the number of the word that each token of the document belongs to.
        lengths: fewest and most tokens, before the words at both ends are completed.
    """
    size = min(int(generator.integers(lengths[0], lengths[1] + 1)), end - start)
    first = start + int(generator.integers(end - start - size + 1))
    last = first + size
    while first > start and words[first] == words[first - 1]:
        first -= 1
    while last < end and words[last] == words[last - 1]:
        last += 1
    return first, last


def piece_edges(tokens: int, count: int) -> np.ndarray:
    """Return where the pieces of a stretch of so many tokens begin, and the end, as late chunking divides a text. It
    counts one special token before the text and one after it."""
    ranks = -(-np.arange(count + 1) * (tokens + 2) // max(count, 1))  # of first tokens; that of the special one is 0
    return np.clip(ranks - 1, 0, tokens)


def align(texts: list[str], tokenizer, teacher: Teacher, settings, seed: int) -> Arrays:
    """Return the arrays of `AlignedTexts` for these texts, as a group `texts`. Empty ones are left out.

    Args:
        settings: the section `data`.
        seed: of the spans.
    """
    tokens, edges, first, spans, chunk_texts, span_texts, begin = [], [], [0], [], [], [], 0
    for text in texts:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets, words = encoding["input_ids"], encoding["offset_mapping"], np.array(encoding.word_ids())
        if not ids:
            continue
        generator = np.random.default_rng([seed, text_hash(text)])
        own = stretch_edges(len(ids), settings.stretch_tokens)
        for start, end in pairwise(own.tolist()):
            span = draw_span(words, start, end, settings.span_tokens, generator)
            chunk_texts.append(text[offsets[start][0] : offsets[end - 1][1]])
            span_texts.append(text[offsets[span[0]][0] : offsets[span[1] - 1][1]])
            spans.append((begin + span[0], begin + span[1]))
        tokens += ids
        edges.append(own + begin)
        first.append(first[-1] + len(own))
        begin += len(ids)
    chunks, pieces, piece_counts = teacher.chunks(chunk_texts, settings.piece_tokens)
    arrays = {
        "tokens": np.array(tokens, dtype=np.int32),
        "edges": np.concatenate([np.zeros(0, dtype=np.int64), *edges]),
        "first": np.array(first, dtype=np.int64),
        "chunks": chunks.astype(np.float16),
        "spans": np.array(spans, dtype=np.int64).reshape(-1, 2),
        "queries": teacher.queries(span_texts).astype(np.float16),
        "pieces": pieces.astype(np.float16),
        "piece_counts": piece_counts.astype(np.int64),
    }
    return {"texts": arrays}


def joined(parts: list[AlignedTexts]) -> AlignedTexts:
    """Return the texts of several parts as one."""
    before = np.cumsum([0, *(len(part.tokens) for part in parts)])
    edges_before = np.cumsum([0, *(len(part.edges) for part in parts)])
    moved = [
        part._replace(edges=part.edges + tokens, spans=part.spans + tokens, first=part.first[1:] + edges)
        for part, tokens, edges in zip(parts, before[:-1], edges_before[:-1], strict=True)
    ]
    whole = AlignedTexts(*(np.concatenate(arrays) for arrays in zip(*moved, strict=True)))
    return whole._replace(first=np.concatenate([[0], whole.first]))


def shards(texts: Iterator[str], chars: int | None) -> list[list[str]]:
    """Return texts in the order of their hashes, so that any beginning is a fair sample, in lists of about
    SHARD_CHARS characters; of `chars` characters in all, if set. Equal texts count once."""
    ordered = sorted({text_hash(text): text for text in texts if text.strip()}.items())
    made, size, total = [], SHARD_CHARS, 0
    for _, text in ordered:
        if chars is not None and total >= chars:
            break
        if size >= SHARD_CHARS:
            made.append([])
            size = 0
        made[-1].append(text)
        size, total = size + len(text), total + len(text)
    return made


def shard_key(texts: list[str], teacher: str, tokenizer: str, settings, seed: int, precision: str) -> str:
    """Return the name of a shard in the cache; `teacher` and `tokenizer` are their hashes."""
    sizes = settings.stretch_tokens, settings.span_tokens, settings.piece_tokens
    made_of = [FORMAT, teacher, tokenizer, *sizes, seed, precision]
    sha256 = hashlib.sha256(json.dumps(made_of).encode())
    for text in texts:
        sha256.update(text_hash(text).to_bytes(8, "big"))
    return sha256.hexdigest()[:24]


class Windows:
    """Cut documents into windows of whole stretches. In every epoch the first window of a document ends elsewhere."""

    def __init__(self, texts: AlignedTexts, max_tokens: int, special: tuple[int, int]):
        self.texts, self.max_tokens, self.special = texts, max_tokens, special
        self.first_pieces = np.cumsum(texts.piece_counts) - texts.piece_counts

    def epoch(self, generator: np.random.Generator | None) -> np.ndarray:
        """Return the windows of an epoch in random order, (M, 3) int64: a document, and its first and last stretch + 1.
        Without a generator: in order, the first window of each document as long as can be."""
        windows, content, first = [], self.max_tokens - len(self.special), self.texts.first
        for document, count in enumerate(self.texts.counts.tolist()):
            edges = self.texts.edges[first[document] : first[document + 1]]
            most = max(1, content // int(np.diff(edges).max()))
            begin = 0 if generator is None or count <= most else int(generator.integers(most)) - most
            starts = range(begin, count, most)
            windows += [(document, max(start, 0), min(start + most, count)) for start in starts if start + most > 0]
        windows = np.array(windows, dtype=np.int64)
        return windows if generator is None else generator.permutation(windows)

    def text(self, window: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a window's ids with special tokens, where its stretches begin in them and end, and their numbers."""
        document, start, end = window.tolist()
        edges = self.texts.edges[self.texts.first[document] + start : self.texts.first[document] + end + 1]
        numbers = np.arange(start, end) + self.texts.first[document] - document
        return framed(self.texts.tokens[edges[0] : edges[-1]], self.special), edges - edges[0] + 1, numbers

    def batch(self, windows: list[np.ndarray]) -> dict:
        """Return what `StretchEncoder` reads, and the teacher's vectors, float32, as the last entry `teacher`."""
        ids, edges, numbers = zip(*map(self.text, windows), strict=True)
        numbers = np.concatenate(numbers)
        spans = [framed(self.texts.tokens[first:last], self.special) for first, last in self.texts.spans[numbers]]
        stretches = [(row, *pair) for row, own in enumerate(edges) for pair in pairwise(own.tolist())]
        pieces, kept = [], []
        for number, (row, start, end) in zip(numbers.tolist(), stretches, strict=True):
            own = start + piece_edges(end - start, self.texts.piece_counts[number])
            for piece, (first, last) in enumerate(pairwise(own.tolist()), self.first_pieces[number]):
                if first < last:  # a teacher with shorter tokens may have more pieces than the student has tokens
                    pieces.append((row, first, last))
                    kept.append(piece)
        teacher = self.texts.chunks[numbers], self.texts.queries[numbers], self.texts.pieces[kept]
        return {
            "ids": list(ids),
            "stretches": torch.tensor(stretches),
            "spans": spans,
            "pieces": torch.tensor(pieces, dtype=torch.long).view(-1, 3),
            "teacher": tuple(torch.from_numpy(rows.astype(np.float32)) for rows in teacher),
        }

    def cut(self, windows: np.ndarray, batch_tokens: int) -> Iterator[list[np.ndarray]]:
        """Yield successive windows that together have at most `batch_tokens` tokens, or one that has more."""
        taken, tokens = [], 0
        for window in windows:
            document, start, end = window.tolist()
            first = self.texts.first[document]
            size = int(self.texts.edges[first + end] - self.texts.edges[first + start]) + len(self.special)
            if taken and tokens + size > batch_tokens:
                yield taken
                taken, tokens = [], 0
            taken.append(window)
            tokens += size
        if taken:
            yield taken


def framed(content: np.ndarray, special: tuple[int, int]) -> np.ndarray:
    """Return [CLS] content [SEP], int64."""
    return np.concatenate([special[:1], content, special[1:]]).astype(np.int64)


class AlignBatches:
    """One process's batches, endless; for `run_loop`. A batch is a function of (seed, epoch, rank) and the data."""

    def __init__(self, windows: Windows, batch_tokens: int, seed: int, rank: int, world: int):
        self.windows, self.batch_tokens, self.seed, self.rank, self.world = windows, batch_tokens, seed, rank, world
        self.restore({"epoch": 0, "batch": 0})

    def next_batch(self) -> dict:
        """Return the batch of one step, as `Windows.batch` does."""
        if self.batch == len(self.batches):
            self.restore({"epoch": self.epoch + 1, "batch": 0})
        self.batch += 1
        return self.windows.batch(self.batches[self.batch - 1])

    def state(self) -> dict:
        """Return the position."""
        return {"epoch": self.epoch, "batch": self.batch}

    def restore(self, state: dict):
        """Go on from a position."""
        self.epoch, self.batch = state["epoch"], state["batch"]
        drawn = self.windows.epoch(np.random.default_rng([self.seed, self.epoch]))
        if len(drawn) < self.world:
            raise ValueError(f"data.sources give {len(drawn)} windows for {self.world} processes; add text")
        self.batches = list(self.windows.cut(drawn[self.rank :: self.world], self.batch_tokens))


class StretchEncoder(nn.Module):
    """A student that gives the vectors of all stretches of its texts in one pass, and those of short texts."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(
        self, ids: list[np.ndarray], stretches: Tensor, spans: list[np.ndarray], pieces: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the vectors of stretches and of spans, both (N, W), and of pieces, (P, W).

        Args:
            ids: token ids of B texts.
            stretches: (N, 3) int64: a text, and the first and the last token + 1 of a stretch in it.
            spans: token ids of N short texts.
            pieces: (P, 3) int64, like stretches.
        """
        device, pad = self.encoder.device, self.encoder.config.pad_token_id
        texts = padded(ids, pad, device)
        hidden = self.encoder(**texts).last_hidden_state  # (B, L, H)
        chunks, parts = (self.pooled(hidden, texts["input_ids"], where.to(device)) for where in (stretches, pieces))
        return chunks, self.encoder(**padded(spans, pad, device)).pooler_output, parts

    def pooled(self, hidden: Tensor, ids: Tensor, parts: Tensor) -> Tensor:
        """Return the vectors (N, W) of parts (N, 3) of texts with states (B, L, H) and token ids (B, L)."""
        if not len(parts):
            return hidden.new_zeros(0, self.encoder.config.projection_dim)
        row, start, end = parts.unbind(1)
        offset = torch.arange(int((end - start).max()), device=parts.device)
        mask = offset < (end - start)[:, None]  # (N, T)
        places = (row[:, None] * hidden.shape[1] + start[:, None] + offset).where(mask, 0)
        return self.encoder.pooler(hidden.flatten(0, 1)[places], mask, ids.flatten()[places])


def padded(texts: list[np.ndarray], pad_id: int, device) -> dict[str, Tensor]:
    """Return texts as the model reads them, padded on the right."""
    rows = [torch.from_numpy(ids) for ids in texts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}
