"""Examples for masked-language modelling out of tokenised documents (paper section 4.2, Table 2).

variable: a passage of one document, its length log-uniform from 10 tokens to the maximum, or to the document's end.
maximum: successive documents joined by [SEP] and cut into full rows [CLS] .. [SEP] of the maximum length.

Examples of local documents are numbered without end. An epoch is a new permutation, and any example of it can be made
from its number alone, so several processes take every n-th one and the position is one number per kind.
"""

import zlib

import numpy as np

from ..settings import SHORTEST_TOKENS
from .token_store import TokenStore

KINDS = ("variable", "maximum")


def random_generator(purpose: str, *numbers: int) -> np.random.Generator:
    """A generator for one purpose; other purposes or numbers give independent ones."""
    return np.random.default_rng([zlib.crc32(purpose.encode()), *numbers])


def passage_bounds(document_tokens: int, max_tokens: int, length: float, place: float) -> tuple[int, int]:
    """(start, tokens) of a passage, from two uniform numbers in [0, 1)."""
    drawn = int(SHORTEST_TOKENS * ((max_tokens + 1) / SHORTEST_TOKENS) ** length)
    tokens = min(drawn - 2, document_tokens)
    return int(place * (document_tokens - tokens + 1)), tokens


def is_long_enough(document_tokens):
    """Whether a document (or each of several) can give a variable-length example."""
    return document_tokens + 2 >= SHORTEST_TOKENS


class Passages:
    """One epoch of variable-length examples: a passage of every document that is long enough, in random order."""

    def __init__(self, store: TokenStore, max_tokens: int, generator: np.random.Generator):
        self.store, self.max_tokens = store, max_tokens
        self.order = generator.permutation(np.flatnonzero(is_long_enough(store.lengths)))
        self.draws = generator.random((len(self.order), 2), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> np.ndarray:
        document = self.order[i]
        start, tokens = passage_bounds(int(self.store.lengths[document]), self.max_tokens, *self.draws[i].tolist())
        start += self.store.starts[document]
        return self.store.tokens[start : start + tokens]


class Rows:
    """One epoch of full rows: documents in random order, a [SEP] after each, cut every `max_tokens - 2`; the rows in
    random order. What does not fill a row at the end is left out."""

    def __init__(self, store: TokenStore, max_tokens: int, sep_id: int, generator: np.random.Generator):
        self.store, self.content_tokens, self.sep_id = store, max_tokens - 2, sep_id
        self.documents = generator.permutation(len(store.lengths))
        self.ends = np.cumsum(store.lengths[self.documents] + 1)  # in the stream of tokens, [SEP] included
        self.order = generator.permutation(int(self.ends[-1]) // self.content_tokens if len(self.ends) else 0)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> np.ndarray:
        first = int(self.order[i]) * self.content_tokens
        last = first + self.content_tokens
        a, b = np.searchsorted(self.ends, (first, last - 1), "right")  # documents of the first and the last token
        ends, documents = self.ends[a : b + 1], self.documents[a : b + 1]
        begins = ends - self.store.lengths[documents] - 1
        counts = np.minimum(ends, last) - np.maximum(begins, first)
        places = np.arange(first, last) + np.repeat(self.store.starts[documents] - begins, counts)
        separators = ends[ends <= last] - 1 - first  # their places hold another document's token, or none
        places[separators] = 0
        row = self.store.tokens[places]
        row[separators] = self.sep_id
        return row


class LocalExamples:
    """Examples of the documents of a store, without end.

    Args:
        name: of the source, in errors.
        max_tokens: [CLS] and [SEP] included.
        seed: numbers that set this source apart.
        rank, world: of `world` processes this one takes every `world`-th example.
    """

    def __init__(
        self, name: str, store: TokenStore, max_tokens: int, tokenizer, seed: tuple[int, ...], rank=0, world=1
    ):
        self.name, self.store, self.max_tokens = name, store, max_tokens
        self.seed, self.rank, self.world = seed, rank, world
        self.cls_id, self.sep_id = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.next = dict.fromkeys(KINDS, 0)  # number of the first example of the next `take`, the same on all processes
        self.epochs: dict[str, tuple[int, Passages | Rows]] = {}

    def size(self, kind: str) -> int:
        """Examples of an epoch."""
        if kind == "variable":
            return int(is_long_enough(self.store.lengths).sum())
        return int((self.store.lengths + 1).sum()) // (self.max_tokens - 2)

    def take(self, kind: str, count: int) -> list[np.ndarray]:
        """The next examples of this process: token ids, int32, special tokens included.

        Raises:
            ValueError: there is none of this kind.
        """
        size = self.size_or_error(kind)
        first = self.next[kind]
        self.next[kind] += count * self.world
        numbers = range(first + self.rank, first + self.rank + count * self.world, self.world)
        return [framed(self.epoch(kind, n // size)[n % size], self.cls_id, self.sep_id) for n in numbers]

    def epoch(self, kind: str, number: int) -> Passages | Rows:
        if self.epochs.get(kind, (None,))[0] != number:
            generator = random_generator(kind, *self.seed, number)
            if kind == "variable":
                made = Passages(self.store, self.max_tokens, generator)
            else:
                made = Rows(self.store, self.max_tokens, self.sep_id, generator)
            self.epochs[kind] = number, made
        return self.epochs[kind][1]

    def size_or_error(self, kind: str) -> int:
        if kind in self.epochs:
            return len(self.epochs[kind][1])
        size = self.size(kind)
        if size:
            return size
        if kind == "variable":
            raise ValueError(
                f"source {self.name}: no document has {SHORTEST_TOKENS - 2} tokens or more to make a variable-length "
                "example; add longer ones, or set its share `variable` to 0"
            )
        raise ValueError(
            f"source {self.name}: the text has {int((self.store.lengths + 1).sum())} tokens, less than one row of "
            f"max_tokens={self.max_tokens}; lower data.max_tokens or add text"
        )

    def token_counts(self, vocab_size: int) -> np.ndarray:
        return self.store.token_counts(vocab_size)

    def state(self) -> dict:
        return dict(self.next)

    def restore(self, state: dict):
        self.next = dict(state)


def framed(content: np.ndarray, cls_id: int, sep_id: int) -> np.ndarray:
    """[CLS] content [SEP], int32."""
    row = np.empty(len(content) + 2, dtype=np.int32)
    row[0], row[1:-1], row[-1] = cls_id, content, sep_id
    return row
