"""Policies turn a document, which may be longer than the encoder's maximum, into one vector or several."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field

from m2bert.schema import Schema, checked
from m2bert.terminal import nearest

from .protocol import Encoder, Task, TokenEncoder, tokenized, unit_rows

SHARE_DROPPED = 16  # two chunks replace one that is too long; each lacks at least one in SHARE_DROPPED of its tokens


class DocumentVectors(NamedTuple):
    """The vectors of D documents. A document's score is that of its best row."""

    rows: np.ndarray  # (N, d) float32 of length 1, a document's rows consecutive
    counts: np.ndarray  # (D,) int64, rows of each document, at least 1
    seen: np.ndarray  # (D,) float32, share of a document's tokens that some vector saw; NaN where tokens are not shown


Positive = Annotated[int, Field(ge=1)]


class Policy(Schema):
    """A way to turn documents into vectors.

    The fields of a subclass are the settings in NAME:key=value. None stands for the model's own setting.
    """

    model_config = ConfigDict(strict=False)  # a value is read from text: "256" is a number
    name: ClassVar[str]
    several: ClassVar[bool]  # whether a document may get more than one vector

    @property
    def spec(self) -> str:
        """The specification that `parse_policy` reads, without the settings that have their default."""
        changed = [f"{name}={value}" for name, value in self.model_dump(exclude_defaults=True).items()]
        return ":".join([self.name, ",".join(changed)] if changed else [self.name])

    def input_tokens(self, encoder: Encoder) -> int | None:
        """Return the longest input that the encoder is given, special tokens and prompt included."""
        return getattr(self, "tokens", None) or encoder.max_tokens

    @property
    def stored(self) -> "Policy":
        """Return the policy whose vectors are cached, from which `combine` derives the vectors of this policy.

        Chunk-average, for example, is derived from best-chunk.
        """
        return self

    def combine(self, vectors: DocumentVectors) -> DocumentVectors:
        """Return this policy's vectors from those of `stored`."""
        return vectors

    @property
    def divisions(self) -> tuple[int, ...]:
        """Return the numbers of parts in which the tokens of one pass are pooled.

        (1, 16) stands for the vector of the whole text and those of 16 parts. A policy that is not computed from one
        pass over the longest input returns an empty tuple.
        """
        return ()

    def problem(self, encoder: Encoder) -> str:
        """Return why this policy cannot work with an encoder; empty if it can.

        The encoder's maximum may be too short, or it may lack a method.
        """
        tokens = getattr(self, "tokens", None)
        if tokens is None:
            return ""
        least = 1 + (overhead_tokens(encoder) if hasattr(encoder, "count_tokens") else 0)
        if least <= tokens <= (encoder.max_tokens or tokens):
            return ""
        return (
            f"tokens={tokens} must be from {least} to {encoder.max_tokens or 'any'}: the encoder takes no more, and "
            "special tokens and prompt must leave room for text"
        )

    def check(self, encoder: Encoder) -> None:
        """Raise ValueError if there is a `problem` with an encoder."""
        if problem := self.problem(encoder):
            raise ValueError(f"policy {self.spec!r} of encoder {encoder.name!r}: {problem}")

    def embed(self, encoder: Encoder, texts: list[str]) -> DocumentVectors:
        """Return the vectors of documents. Raises ValueError as `check` does.

        A document's vectors do not depend on the documents that are embedded with it.
        """
        self.check(encoder)
        return self.combine(self.stored.compute(encoder, texts))

    def compute(self, encoder: Encoder, texts: list[str]) -> DocumentVectors:
        """Return the vectors of documents, without `check`. Subclasses define it; it is called on `stored` only."""


class Truncate(Policy):
    """One vector of a document's beginning. The rest is not read."""

    name = "truncate"
    several = False
    tokens: Positive | None = None

    @property
    def divisions(self) -> tuple[int, ...]:
        return () if self.tokens else (1,)

    def compute(self, encoder: Encoder, texts: list[str]) -> DocumentVectors:
        return embed_beginning(encoder, texts, "document", self.tokens)


class BestChunk(Policy):
    """One vector for each chunk. The chunk with the best score decides the document's score."""

    name = "best-chunk"
    several = True
    tokens: Positive | None = None
    stride: Positive | None = None

    def problem(self, encoder: Encoder) -> str:
        if not hasattr(encoder, "token_spans"):
            return "the encoder does not show its tokens; use truncate"
        tokens = self.input_tokens(encoder)
        if tokens is None:
            return f"the encoder takes texts of any length; give that of chunks, as in {self.name}:tokens=256"
        content = tokens - overhead_tokens(encoder)
        if content > 0 and self.stride and self.stride > content:
            reason = f"a chunk of {tokens} tokens holds {content} of the document"
            return f"stride={self.stride} would skip text: {reason}; lower it"
        return super().problem(encoder)

    def compute(self, encoder: Encoder, texts: list[str]) -> DocumentVectors:
        chunked = chunk_texts(encoder, texts, self.input_tokens(encoder), self.stride)
        rows = encoder.encode([chunk for chunks in chunked for chunk in chunks], "document")
        counts = np.array([len(chunks) for chunks in chunked], dtype=np.int64)
        return DocumentVectors(rows, counts, np.ones(len(texts), dtype=np.float32))


class ChunkAverage(BestChunk):
    """One vector: the mean of the chunks' vectors (paper section 5.1)."""

    name = "chunk-average"
    several = False

    @property
    def stored(self) -> Policy:
        return BestChunk(tokens=self.tokens, stride=self.stride)

    def combine(self, vectors: DocumentVectors) -> DocumentVectors:
        rows, counts, seen = vectors
        means = np.add.reduceat(rows, np.cumsum(counts) - counts, axis=0) if len(counts) else rows
        return DocumentVectors(unit_rows(means), np.ones_like(counts), seen)


class LateChunk(Policy):
    """Up to `vectors` vectors from one pass over the document.

    The model reads the document once, so that every token has seen all of it. Only then are the tokens divided into
    equal consecutive parts, and each part is pooled to a vector (Guenther et al. 2024, arXiv 2409.04701). With
    `document=1` the vector of the whole document, which is the vector of truncate, is added to that of each part, and
    the sums are brought to length 1.
    """

    name = "late-chunk"
    several = True
    vectors: Positive = 16
    document: Annotated[int, Field(ge=0, le=1)] = 0

    @property
    def divisions(self) -> tuple[int, ...]:
        return (1, self.vectors) if self.document else (self.vectors,)

    def problem(self, encoder: Encoder) -> str:
        if not hasattr(encoder, "encode_parts"):
            return "the encoder cannot pool its parts; use truncate"
        return getattr(encoder, "parts_problem", "")

    def compute(self, encoder: Encoder, texts: list[str]) -> DocumentVectors:
        return compute_divisions(encoder, [self], texts)[0]


POLICIES = {policy.name: policy for policy in (Truncate, ChunkAverage, BestChunk, LateChunk)}


def parse_policy(text: str) -> Policy:
    """Read `NAME[:key=value,...]`: truncate[:tokens=N], chunk-average[:tokens=N,stride=S], best-chunk (the same),
    late-chunk[:vectors=K,document=1]."""
    name, _, settings = text.strip().partition(":")
    if name not in POLICIES:
        raise ValueError(f"policy {name!r} is unknown; choose from: {', '.join(POLICIES)}{nearest(name, POLICIES)}")
    values = {}
    for setting in settings.split(",") if settings else ():
        key, _, value = setting.partition("=")
        values[key.strip()] = value.strip()
    return checked(POLICIES[name], values, f"policy {text!r}")


def same_pass(encoder: Encoder, policy: Policy, others: Sequence[Policy]) -> list[Policy]:
    """Return those of the other policies whose vectors can be pooled from the same pass as those of `policy`."""
    if not policy.divisions or LateChunk().problem(encoder):
        return []
    return [other for other in dict.fromkeys(others) if other.divisions and other != policy]


def compute_divisions(encoder: Encoder, policies: Sequence[Policy], texts: list[str]) -> list[DocumentVectors]:
    """Return the vectors of documents under each of several policies that have `divisions`, from one pass."""
    texts = tokenized(encoder, texts, "document")
    parts = sorted({number for policy in policies for number in policy.divisions})
    pooled = dict(zip(parts, encoder.encode_parts(texts, parts), strict=True))
    seen = seen_shares(encoder, texts, "document", encoder.max_tokens)
    made = []
    for policy in policies:
        rows, counts = pooled[policy.divisions[-1]]
        if len(policy.divisions) > 1:  # the whole document, and its parts
            rows = unit_rows(rows + np.repeat(pooled[1][0], counts, axis=0))
        made.append(DocumentVectors(rows, counts, seen))
    return made


def embed_beginning(encoder: Encoder, texts: list[str], task: Task, tokens: int | None) -> DocumentVectors:
    """Return one vector for each text, of its first `tokens` tokens; None stands for the encoder's maximum."""
    texts = tokenized(encoder, texts, task)
    rows = encoder.encode(texts, task, tokens)
    seen = seen_shares(encoder, texts, task, tokens or encoder.max_tokens)
    return DocumentVectors(rows, np.ones(len(texts), dtype=np.int64), seen)


def seen_shares(encoder: Encoder, texts: list[str], task: Task, tokens: int | None) -> np.ndarray:
    """Return (n,) float32, the fraction of each text that fits in `tokens` tokens; NaN if it is not known."""
    if not tokens:
        return np.ones(len(texts), dtype=np.float32)
    if not hasattr(encoder, "count_tokens"):
        return np.full(len(texts), np.nan, dtype=np.float32)
    overhead = overhead_tokens(encoder, task)
    total = np.maximum(encoder.count_tokens(texts, task) - overhead, 1)
    return np.clip((tokens - overhead) / total, 0, 1).astype(np.float32)


def overhead_tokens(encoder: TokenEncoder, task: Task = "document") -> int:
    """Return how many tokens every input has besides its text: special tokens and prompt."""
    return int(encoder.count_tokens([""], task)[0])


def chunk_texts(encoder: TokenEncoder, texts: list[str], tokens: int, stride: int | None = None) -> list[list[str]]:
    """Cut every document into chunks of at most `tokens` tokens, special tokens and prompt included; see `cut`."""
    texts = tokenized(encoder, texts, "document")
    content = tokens - overhead_tokens(encoder)
    spans = encoder.token_spans(texts)
    chunked = [cut(text, text_spans, content, stride) for text, text_spans in zip(texts, spans, strict=True)]
    shortened = iter(_shorten(encoder, [chunk for chunks in chunked for chunk in chunks], tokens))
    return [[part for _ in chunks for part in next(shortened)] for chunks in chunked]


def cut(text: str, spans: np.ndarray, tokens: int, stride: int | None = None) -> list[str]:
    """Cut a text into chunks of `tokens` tokens, of which the last may be shorter.

    Every token is in some chunk. A last chunk that would only repeat the end of the one before is left out.

    Args:
        spans: (n, 2), the characters [start, end) of the text's tokens. A text without tokens becomes one empty chunk.
        tokens: content tokens of a chunk.
        stride: content tokens from one chunk's start to the next; by default `tokens`, so that no chunks overlap.
    """
    if not len(spans):
        return [""]
    starts = range(0, max(1, len(spans) - tokens + (stride or tokens)), stride or tokens)
    chunks = [text[spans[start, 0] : spans[min(start + tokens, len(spans)) - 1, 1]] for start in starts]
    return [text] if chunks == [text] else chunks  # the same object: it may be a TokenizedText


def _shorten(encoder: TokenEncoder, chunks: list[str], tokens: int) -> list[list[str]]:
    """Replace each chunk that is longer than `tokens` by overlapping chunks that together hold all of it.

    A chunk that begins or ends inside a word is tokenized differently than inside its text, and may grow by a token
    or two. Overlapping chunks stay near the asked length; two halves would not. A chunk that cannot be made shorter
    stays as it is.
    """
    chunks = tokenized(encoder, chunks, "document")
    shortened = []
    for chunk, count in zip(chunks, encoder.count_tokens(chunks, "document").tolist(), strict=True):
        spans = encoder.token_spans([chunk])[0] if count > tokens else []
        parts = [chunk]
        if len(spans) > 1:
            dropped = min(max(count - tokens, len(spans) // SHARE_DROPPED, 1), len(spans) // 2)
            parts = [chunk[: spans[-dropped - 1, 1]], chunk[spans[dropped, 0] :]]
        if chunk in parts:  # it fits, or it cannot be made shorter
            shortened.append([chunk])
        else:
            shortened.append([shorter for pieces in _shorten(encoder, parts, tokens) for shorter in pieces])
    return shortened
