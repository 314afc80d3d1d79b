"""The tokens of a text, and a tokenizer of long texts that computes the tokens of every word once."""

import itertools
import threading
from collections.abc import Callable
from functools import cached_property

import numpy as np
import tokenizers

WORDS_KEPT = 100_000  # some 20 MB; beyond, all are forgotten
_lock = threading.Lock()  # of all tokenizers: one of its own could not be copied


class Tokens:
    """The tokens of a text without special tokens. A slice of it is one too.

    Attributes:
        ids: (n,) int64.
    """

    def __init__(self, ids: np.ndarray, find_spans: Callable[[], np.ndarray]):
        self.ids, self._find_spans = ids, find_spans

    @classmethod
    def of(cls, encoding: tokenizers.Encoding) -> "Tokens":
        """Return the tokens that `tokenizers` found."""
        return cls(
            np.array(encoding.ids, dtype=np.int64),
            lambda: np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2),
        )

    @cached_property
    def spans(self) -> np.ndarray:
        """The characters [start, end) of each token, (n, 2) int64. They are computed when they are first read."""
        return self._find_spans()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Tokens":
        return Tokens(self.ids[part], lambda: self.spans[part])

    def __add__(self, other: "Tokens") -> "Tokens":
        ids = np.concatenate([self.ids, other.ids])
        return Tokens(ids, lambda: np.concatenate([self.spans, other.spans]))


class WordTokenizer:
    """Tokenize texts as a tokenizer of BERT's kind does, which never looks beyond a space.

    A word here is what stands between spaces and ends of lines, with its punctuation. The tokens of a word are kept:
    looking a word up takes a tenth of the time of tokenizing it.

    Args:
        backend: a tokenizer that `is_exact` for. It neither truncates nor pads.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend
        self._clear()

    @staticmethod
    def is_exact(backend: tokenizers.Tokenizer) -> bool:
        """Return whether the tokens of a text are those of its words, one word after another."""
        return (
            isinstance(backend.normalizer, tokenizers.normalizers.BertNormalizer)
            and isinstance(backend.pre_tokenizer, tokenizers.pre_tokenizers.BertPreTokenizer)
            and isinstance(backend.model, tokenizers.models.WordPiece)
            and not any(set(token.content) & set(" \t\r\n") for token in backend.get_added_tokens_decoder().values())
        )

    def __call__(self, text: str) -> Tokens:
        """Return the tokens of a text."""
        words = text.replace("\n", " ").replace("\t", " ").replace("\r", " ").split(" ")
        with _lock:
            if new := set(words).difference(self._numbers):
                self._learn(sorted(new))
            numbers = np.fromiter(map(self._numbers.__getitem__, words), dtype=np.int64, count=len(words))
            counts, sizes = self._counts[numbers], self._sizes[numbers]
            places = np.repeat(self._starts[numbers] - counts.cumsum() + counts, counts) + np.arange(counts.sum())
            ids, spans = self._ids[places], self._spans[places]
            if len(self._numbers) > WORDS_KEPT:
                self._clear()

        def find_spans() -> np.ndarray:
            starts = (sizes + 1).cumsum() - sizes - 1  # the first character of each word
            return spans + np.repeat(starts, counts)[:, None]

        return Tokens(ids, find_spans)

    def _clear(self):
        self._numbers: dict[str, int] = {}  # of the words that are known
        self._counts, self._starts, self._sizes = np.empty((3, 0), dtype=np.int64)  # tokens, the first one, characters
        self._ids, self._spans = np.empty(0, dtype=np.int64), np.empty((0, 2), dtype=np.int64)  # of their tokens

    def _learn(self, words: list[str]):
        found = self.backend.encode_batch(words, add_special_tokens=False)
        ids = [token_id for encoding in found for token_id in encoding.ids]
        spans = [span for encoding in found for span in encoding.offsets]
        self._ids = np.append(self._ids, np.array(ids, dtype=np.int64))
        self._spans = np.append(self._spans, np.array(spans, dtype=np.int64).reshape(-1, 2), axis=0)
        self._counts = np.append(self._counts, np.array(list(map(len, found)), dtype=np.int64))
        self._starts = self._counts.cumsum() - self._counts
        self._sizes = np.append(self._sizes, np.array(list(map(len, words)), dtype=np.int64))
        self._numbers |= zip(words, itertools.count(len(self._numbers)), strict=False)
