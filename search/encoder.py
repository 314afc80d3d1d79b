"""Vectors of whole documents: overlapping windows of the model's length, several late chunks of each."""

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m2bert.eval.encoders.protocol import TokenizedText, unit_rows

FEWEST_TOKENS = 100  # of a late chunk, but for shorter documents
OVERLAP = 8  # a window repeats this part, an eighth, of the one before
SLACK = 32  # a window leaves this part free: a model that reads text, not ids, may make more tokens of it
PORTION_CHARS = 800_000  # tokens of so much text are in memory together; a longer text is cut there


class EncodedDocument(NamedTuple):
    """What an index keeps of a document."""

    vectors: np.ndarray  # (n, d) float32 of length 1
    spans: np.ndarray  # (n, 2) int64, characters [start, end) of each vector; in order, they cover the text
    tokens: int  # of the text, special tokens and prompt included


class Encoder:
    """Embed queries, and documents of any length. Threads can share one; they read one after another.

    Args:
        model: folder or Hub id, as `m2bert eval` takes it.
        device: as torch names it; by default a GPU, where there is one.

    Attributes:
        base: the encoder of `m2bert.eval` that does the work.
        name: what the user called the model.
        dimensions: length of the vectors.
        max_tokens: the model's longest input, special tokens and prompt included; None if there is no limit.
    """

    def __init__(self, model: str | Path, device: str | None = None):
        from m2bert.eval.encoders.policies import overhead_tokens
        from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder

        self.base, self._lock = SentenceTransformerEncoder(model, device), threading.Lock()
        self.name, self.dimensions, self.max_tokens = self.base.name, self.base.dimensions, self.base.max_tokens
        self.base.token_spans([""])  # a tokenizer that does not show where its tokens are is refused here
        self._overhead = overhead_tokens(self.base)
        self._room = None if self.max_tokens is None else self.max_tokens - self._overhead
        if self._room is not None and self._room < OVERLAP:
            least = f"special tokens and prompt leave {self._room} tokens for text, at least {OVERLAP} are needed"
            raise ValueError(f"model={self.name} reads {self.max_tokens} tokens: {least}; name a model that reads more")

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the model: weights, settings, tokenizer, prompts. An index outlives versions of packages."""
        from m2bert.eval.encoders.fingerprint import model_fingerprint

        return model_fingerprint(self.base.model, code=False)

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Count the tokens of each document, special tokens and prompt included: (n,) int64."""
        with self._lock:
            return self.base.count_tokens(list(texts), "document")

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors (n, d) float32 of queries. One that is longer than the model's input is a ValueError."""
        with self._lock:
            texts = self.base.tokenize(list(texts), "query")
            for text in texts:
                if self.max_tokens and text.tokens > self.max_tokens:
                    problem = f"has {text.tokens} tokens, and the model reads {self.max_tokens}; shorten it"
                    raise ValueError(f"the query that begins {text[:60]!r} {problem}")
            return self._finite(self.base.encode(texts, "query"), texts)

    def encode_documents(self, texts: Sequence[str], vectors: int = 16) -> list[EncodedDocument]:
        """Embed documents from their beginning to their end.

        One that the model takes whole is one window. A longer one is several of equal length that overlap. Each
        window is read once, then pooled in up to `vectors` equal parts, none of fewer than FEWEST_TOKENS tokens unless
        the document is shorter. Its own vector is added to each (`late-chunk:document=1` of `m2bert.eval`). A model
        that cannot pool parts, as by its first token, gives one vector a window.
        """
        from m2bert.eval.encoders.cache import portions

        sections = [_sections(str(text)) for text in texts]
        flat, encoded = [section for its in sections for section in its], []
        for portion in portions(flat, PORTION_CHARS):
            with self._lock:
                encoded += self._encode(self.base.tokenize(flat[portion], "document"), vectors)
        parts, found = iter(encoded), []
        for its in sections:
            own = [next(parts) for _ in its]
            starts = np.cumsum([0, *map(len, its[:-1])])
            spans = [part.spans + start for part, start in zip(own, starts, strict=True)]
            repeated = (len(own) - 1) * self._overhead
            tokens = sum(part.tokens for part in own) - repeated
            found.append(EncodedDocument(np.concatenate([part.vectors for part in own]), np.concatenate(spans), tokens))
        return found

    def _encode(self, texts: list, vectors: int) -> list[EncodedDocument]:
        windowed = [self._windows(text) for text in texts]
        windows = [window for its in windowed for window, _ in its]
        if self.base.parts_problem:
            rows, counts = self.base.encode(windows, "document"), np.ones(len(windows), dtype=np.int64)
        else:
            (whole, _), (rows, counts) = self.base.encode_parts(windows, [1, vectors], FEWEST_TOKENS)
            rows = unit_rows(rows + np.repeat(whole, counts, axis=0))
        self._finite(rows, np.repeat(np.array(windows, dtype=object), counts))
        numbers, pooled, done = iter(counts.tolist()), [], 0
        for text, its in zip(texts, windowed, strict=True):
            spans = np.concatenate([self._spans(window, *place, next(numbers)) for window, place in its])
            pooled.append(EncodedDocument(rows[done : done + len(spans)], spans, text.tokens))
            done += len(spans)
        return pooled

    def _windows(self, text) -> list[tuple]:
        """Return windows of a document, made of its tokens, each with its characters [start, end) of the text."""
        if self.max_tokens is None or text.tokens <= self.max_tokens:
            return [(text, (0, len(text)))]
        [empty] = self.base.tokenize([""], "document")
        prompt = empty.encoding  # of every window
        tokens = text.encoding[len(prompt) :]
        most = self._room - self._room // SLACK
        overlap = most // OVERLAP
        count = -(-(len(tokens) - overlap) // (most - overlap))
        size = -(-(len(tokens) + (count - 1) * overlap) // count)
        places = range(0, max(1, len(tokens) - overlap), size - overlap)
        windows = []
        for place in places:
            part = tokens[place : place + size]
            start = int(part.spans[0, 0]) - len(text.prompt) if windows else 0
            end = int(part.spans[-1, 1]) - len(text.prompt) if place < places[-1] else len(text)
            window = TokenizedText(text[start:end], text.prompt, empty.tokens + len(part), prompt + part)
            windows.append((window, (start, end)))
        return windows

    def _spans(self, window, start: int, end: int, count: int) -> np.ndarray:
        """Return the characters (count, 2) of a window's parts: each ends where the next one's first token begins."""
        if count == 1:
            return np.array([[start, end]], dtype=np.int64)
        starts, spans = [start], window.encoding.spans
        leading = self.base.model.tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"].index(0)
        for part in range(1, count):
            index = -(-part * window.tokens // count) - leading
            place = int(spans[min(max(index, 0), len(spans) - 1), 0]) - len(window.prompt)
            starts.append(min(max(place, starts[-1]), end))
        return np.array([starts, [*starts[1:], end]], dtype=np.int64).T

    def _finite(self, rows: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            text = str(texts[finite.argmin()])
            broken = f"the vector of the text that begins {text[:60]!r} is not finite"
            raise ValueError(f"model={self.name}: {broken}; it is broken, or computes in too narrow a dtype")
        return rows


def _sections(text: str) -> list[str]:
    """Cut a text into sections of at most PORTION_CHARS: at the last end of a line or word of their last eighth."""
    sections, start = [], 0
    while len(text) - start > PORTION_CHARS:
        end = start + PORTION_CHARS
        late = end - PORTION_CHARS // 8
        cut = next((place for mark in "\n " if (place := text.rfind(mark, late, end)) >= 0), end - 1)
        sections.append(text[start : cut + 1])
        start += len(sections[-1])
    return [*sections, text[start:]]
