"""What happens to documents that are longer than a model takes: how one becomes one vector, or several."""

import re
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import numpy as np

from m2bert.terminal import nearest

from .chunks import chunk_texts, overhead_tokens
from .protocol import Encoder, Task


class DocumentVectors(NamedTuple):
    """The vectors of D documents.

    Attributes:
        rows: (N, d) float32 of length 1, a document's rows consecutive; its score is that of its best row.
        counts: (D,) int64, rows of each document, at least 1.
        seen: (D,) float32, share (0 to 1) of the document's tokens that some vector saw; NaN where the encoder does
            not show its tokens.
    """

    rows: np.ndarray
    counts: np.ndarray
    seen: np.ndarray


@dataclass(frozen=True)
class Policy:
    """From documents to vectors. Fields are the settings of its specification, None where the model decides."""

    name: ClassVar[str]
    several: ClassVar[bool]  # whether a document may get more than one vector

    @property
    def spec(self) -> str:
        """The canonical specification, which `parse_policy` reads: settings at their default are left out."""
        settings = [(field, getattr(self, field.name)) for field in fields(self)]
        changed = [f"{field.name}={value}" for field, value in settings if value != field.default]
        return ":".join([self.name, ",".join(changed)] if changed else [self.name])

    def input_tokens(self, encoder: Encoder) -> int | None:
        """Return the longest input that the encoder is given, special tokens and prompt included."""
        return getattr(self, "tokens", None) or encoder.max_tokens

    @property
    def stored(self) -> "Policy":
        """The policy whose vectors are cached; `combine` derives this policy's vectors from them."""
        return self

    def combine(self, vectors: DocumentVectors) -> DocumentVectors:
        """Return this policy's vectors from those of `stored`."""
        return vectors

    def check(self, encoder: Encoder) -> None:
        """Refuse an encoder that this policy cannot work with.

        Raises:
            ValueError: more tokens than the model takes, or too few to hold a word; or the encoder does not show what
                the policy needs.
        """
        tokens = getattr(self, "tokens", None)
        if tokens and encoder.max_tokens and tokens > encoder.max_tokens:
            raise ValueError(
                f"policy {self.spec!r}: tokens={tokens} is more than the {encoder.max_tokens} that encoder "
                f"{encoder.name!r} takes; lower it"
            )
        if tokens and hasattr(encoder, "count_tokens") and tokens <= overhead_tokens(encoder):
            raise ValueError(
                f"policy {self.spec!r}: tokens={tokens} leaves no room for text, since special tokens and prompt of "
                f"encoder {encoder.name!r} take {overhead_tokens(encoder)}; raise it"
            )

    def embed(self, encoder: Encoder, texts: list[str]) -> DocumentVectors:
        """Return the vectors of documents, independent of which documents are embedded together.

        Raises:
            ValueError: see `check`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Truncate(Policy):
    """One vector of the beginning; the rest is not read."""

    name = "truncate"
    several = False
    tokens: int | None = None

    def embed(self, encoder: Encoder, texts: list[str]) -> DocumentVectors:
        self.check(encoder)
        return embed_beginning(encoder, texts, "document", self.tokens)


@dataclass(frozen=True)
class BestChunk(Policy):
    """A vector for each chunk; the best one counts."""

    name = "best-chunk"
    several = True
    tokens: int | None = None
    stride: int | None = None

    def check(self, encoder: Encoder) -> None:
        if not hasattr(encoder, "token_spans"):
            raise ValueError(
                f"policy {self.spec!r} cuts documents at tokens, and encoder {encoder.name!r} does not show them; "
                "use truncate"
            )
        super().check(encoder)
        tokens = self.input_tokens(encoder)
        if tokens is None:
            raise ValueError(
                f"policy {self.spec!r}: encoder {encoder.name!r} takes texts of any length; say how long chunks are, "
                f"as in {self.name}:tokens=256"
            )
        content = tokens - overhead_tokens(encoder)
        if self.stride and self.stride > content:
            raise ValueError(
                f"policy {self.spec!r}: stride={self.stride} would skip text, since a chunk of {tokens} tokens holds "
                f"{content} of the document; lower it"
            )

    def embed(self, encoder: Encoder, texts: list[str]) -> DocumentVectors:
        self.check(encoder)
        chunked = chunk_texts(encoder, texts, self.input_tokens(encoder), self.stride)
        rows = encoder.encode([chunk for chunks in chunked for chunk in chunks], "document")
        counts = np.array([len(chunks) for chunks in chunked], dtype=np.int64)
        return DocumentVectors(rows, counts, np.ones(len(texts), dtype=np.float32))


@dataclass(frozen=True)
class ChunkAverage(BestChunk):
    """One vector: the mean of the chunks' vectors (paper section 5.1)."""

    name = "chunk-average"
    several = False

    @property
    def stored(self) -> Policy:
        return BestChunk(self.tokens, self.stride)

    def combine(self, vectors: DocumentVectors) -> DocumentVectors:
        rows, counts, seen = vectors
        means = np.add.reduceat(rows, np.cumsum(counts) - counts, axis=0) if len(counts) else rows
        return DocumentVectors(unit_rows(means), np.ones_like(counts), seen)

    def embed(self, encoder: Encoder, texts: list[str]) -> DocumentVectors:
        return self.combine(super().embed(encoder, texts))


@dataclass(frozen=True)
class LateChunk(Policy):
    """Up to `vectors` vectors from one pass over the document (Guenther et al. 2024, arXiv 2409.04701)."""

    name = "late-chunk"
    several = True
    vectors: int = 16

    def check(self, encoder: Encoder) -> None:
        if not hasattr(encoder, "encode_parts"):
            raise ValueError(
                f"policy {self.spec!r} pools the token vectors of encoder {encoder.name!r}, which does not show them; "
                "use truncate"
            )

    def embed(self, encoder: Encoder, texts: list[str]) -> DocumentVectors:
        self.check(encoder)
        rows, counts = encoder.encode_parts(texts, self.vectors)
        return DocumentVectors(rows, counts, seen_shares(encoder, texts, "document", encoder.max_tokens))


POLICIES = {policy.name: policy for policy in (Truncate, ChunkAverage, BestChunk, LateChunk)}


def parse_policy(text: str) -> Policy:
    """Read `NAME[:key=value,...]`: truncate[:tokens=N], chunk-average[:tokens=N,stride=S], best-chunk (the same),
    late-chunk[:vectors=K].

    Raises:
        ValueError: an unknown name or key, or a value that is no number of 1 or more.
    """
    name, _, settings = text.strip().partition(":")
    if name not in POLICIES:
        raise ValueError(f"policy {name!r} is unknown; choose from: {', '.join(POLICIES)}{nearest(name, POLICIES)}")
    known = [field.name for field in fields(POLICIES[name])]
    values: dict[str, int] = {}
    for setting in settings.split(",") if settings else []:
        key, _, value = (part.strip() for part in setting.partition("="))
        if key not in known or key in values:
            raise ValueError(f"policy {text!r} cannot set {key!r}; {name} takes, once each: {', '.join(known)}")
        if not re.fullmatch("0*[1-9][0-9]*", value):
            raise ValueError(f"policy {text!r}: {key}={value} must be a whole number of at least 1")
        values[key] = int(value)
    return POLICIES[name](**values)


def embed_beginning(encoder: Encoder, texts: list[str], task: Task, tokens: int | None) -> DocumentVectors:
    """Return one vector a text, of its first `tokens` tokens, or of as many as the encoder takes."""
    rows = encoder.encode(texts, task, tokens)
    seen = seen_shares(encoder, texts, task, tokens or encoder.max_tokens)
    return DocumentVectors(rows, np.ones(len(texts), dtype=np.int64), seen)


def seen_shares(encoder: Encoder, texts: list[str], task: Task, tokens: int | None) -> np.ndarray:
    """Return (n,) float32: the share of each text's tokens that the first `tokens` are; NaN if it is not known."""
    if not tokens:
        return np.ones(len(texts), dtype=np.float32)
    if not hasattr(encoder, "count_tokens"):
        return np.full(len(texts), np.nan, dtype=np.float32)
    overhead = encoder.count_tokens([""], task)[0]
    total = np.maximum(encoder.count_tokens(texts, task) - overhead, 1)
    return np.clip((tokens - overhead) / total, 0, 1).astype(np.float32)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows (n, d) scaled to length 1, float32; a zero row stays zero."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
