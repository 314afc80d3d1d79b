"""Examples for masked-language modeling out of tokenized documents (paper section 4.2, Table 2).

variable: a passage of one document, its length log-uniform from 10 tokens to the maximum, or to the document's end.
maximum: successive documents joined by [SEP] and cut into full rows [CLS] .. [SEP] of the maximum length.

Local documents are tokenized once (`open_store`) and drawn at random. Their examples are numbered without end: an
epoch is a new permutation, and any example of it can be made from its number alone, so several processes take every
n-th one and the position is one number per kind. Streamed documents are tokenized as they arrive, in their order.
"""

import zlib
from collections.abc import Callable

import numpy as np

from ..settings import SHORTEST_TOKENS
from ..tokenizer import encode_all
from .sources import Source, text_of
from .tokens import TokenStore, batches_of_texts

STREAMED_ROWS = 64  # read at once
COUNTED_CHARS = 2**18  # of a stream, for the frequencies of its tokens
KINDS = ("variable", "maximum")


def random_generator(purpose: str, *numbers: int) -> np.random.Generator:
    """Return a generator that depends on a purpose and numbers."""
    return np.random.default_rng([zlib.crc32(purpose.encode()), *numbers])


def passage_bounds(document_tokens: int, max_tokens: int, length: float, place: float) -> tuple[int, int]:
    """Return (start, tokens) of a passage, from two uniform numbers in [0, 1)."""
    drawn = int(SHORTEST_TOKENS * ((max_tokens + 1) / SHORTEST_TOKENS) ** length)
    tokens = min(drawn - 2, document_tokens)
    return int(place * (document_tokens - tokens + 1)), tokens


def is_long_enough(document_tokens):
    """Return whether a document (or each of several) can give a variable-length example."""
    return document_tokens + 2 >= SHORTEST_TOKENS


def framed(content: np.ndarray, tokenizer) -> np.ndarray:
    """Return [CLS] content [SEP], int32."""
    return np.concatenate([[tokenizer.cls_token_id], content, [tokenizer.sep_token_id]], dtype=np.int32)


class Passages:
    """One epoch of variable-length examples: a passage of every document that is long enough, in random order."""

    def __init__(self, store: TokenStore, max_tokens: int, generator: np.random.Generator):
        self.store, self.max_tokens = store, max_tokens
        self.order = generator.permutation(np.flatnonzero(is_long_enough(store.lengths)))
        self.draws = generator.random((len(self.order), 2), dtype=np.float32)

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
    """Examples of at most `max_tokens` tokens of the documents of a store, without end. Of `world` processes this one
    takes every `world`-th."""

    def __init__(
        self, name: str, store: TokenStore, max_tokens: int, tokenizer, seed: tuple[int, ...], rank=0, world=1
    ):
        self.name, self.store, self.max_tokens, self.tokenizer = name, store, max_tokens, tokenizer
        self.seed, self.rank, self.world = seed, rank, world
        self.next = dict.fromkeys(KINDS, 0)  # number of the first example of the next `take`, the same on all processes
        self.epochs: dict[str, tuple[int, Passages | Rows]] = {}
        tokens = int((store.lengths + 1).sum())
        self.sizes = {"variable": int(is_long_enough(store.lengths).sum()), "maximum": tokens // (max_tokens - 2)}

    def take(self, kind: str, count: int) -> list[np.ndarray]:
        """Return the next examples of this process: token ids, int32, special tokens included."""
        size, first = self.sizes[kind], self.next[kind]
        if not size:
            raise ValueError(
                f"source {self.name}: no {kind} example in {int(self.store.lengths.sum())} tokens: a passage needs a "
                f"document of {SHORTEST_TOKENS - 2}, a row data.max_tokens={self.max_tokens} in all; add text"
            )
        self.next[kind] += count * self.world
        numbers = range(first + self.rank, first + self.rank + count * self.world, self.world)
        return [framed(self.epoch(kind, n // size)[n % size], self.tokenizer) for n in numbers]

    def epoch(self, kind: str, number: int) -> Passages | Rows:
        if self.epochs.get(kind, (None,))[0] != number:
            generator = random_generator(kind, *self.seed, number)
            if kind == "variable":
                made = Passages(self.store, self.max_tokens, generator)
            else:
                made = Rows(self.store, self.max_tokens, self.tokenizer.sep_token_id, generator)
            self.epochs[kind] = number, made
        return self.epochs[kind][1]

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """Return how often each token occurs; (vocab_size,) int64."""
        return self.store.token_counts(vocab_size)

    def state(self) -> dict:
        """Return the position."""
        return dict(self.next)

    def restore(self, state: dict):
        """Resume from a position."""
        self.next = dict(state)


def open_stream(source: Source, split: str, tokenizer, keep: Callable[[str], bool], rank: int, world: int):
    """Return a process's part of a split on the Hub, tokenized as it is iterated: {ids, chars}.

    Processes share a stream by its shards where these divide evenly, else row by row. Where `keep` is false of a text
    its ids are empty.
    """
    from datasets import load_dataset
    from datasets.distributed import split_dataset_by_node

    column, size = source.column or "text", source.rows_per_document
    try:
        rows = load_dataset(source.path, source.config, split=split, revision=source.revision, streaming=True)
        rows = rows.select_columns(column)
        if rows.features is None:  # not known before a row is read
            next(iter(rows), None)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"source {source.path!r} is no local path, and its column {column!r} cannot be read from the Hub: {error}"
        ) from error
    if size > 1:  # before the split, which may deal out single rows
        rows = rows.batch(size)

    def tokenize(batch: dict) -> dict:
        groups = batch[column] if size > 1 else [[text] for text in batch[column]]
        texts = ["\n".join(text_of({column: text}, column, source.path) for text in group) for group in groups]
        texts = [text if keep(text) else "" for text in texts]
        ids = [row for part in batches_of_texts(texts) for row in encode_all(tokenizer, part)]
        return {"ids": ids, "chars": [len(text) for text in texts]}

    rows = split_dataset_by_node(rows, rank=rank, world_size=world)
    return rows.map(tokenize, batched=True, batch_size=STREAMED_ROWS, remove_columns=[column])


class StreamedExamples:
    """Examples of a streamed source, without end; the two kinds take turns in reading the same stream.

    Documents come in the order of the data set, again and again. Neither kind leaves text unused that was read: rows
    are cut from documents joined, and the passages of a document follow one another until less than the shortest
    example is left of it. With `spread`, one passage of each document is taken, at a random place: a few examples
    should be of many documents.
    """

    def __init__(self, rows, name: str, max_tokens: int, tokenizer, seed: tuple[int, ...], spread: bool = False):
        self.rows, self.name, self.spread = rows, name, spread
        self.max_tokens, self.tokenizer, self.seed = max_tokens, tokenizer, seed
        self.beginning, self.ends = rows.state_dict(), 0
        self.restore({"rows": self.beginning, "row": [], "passage": [], "drawn": 0})

    def take(self, kind: str, count: int) -> list[np.ndarray]:
        """Return the next examples: token ids, int32, special tokens included."""
        make = {"variable": self.passage, "maximum": self.row}[kind]
        return [framed(make(), self.tokenizer) for _ in range(count)]

    def passage(self) -> np.ndarray:
        if self.spread or not is_long_enough(len(self.passage_rest)):
            self.passage_rest = self.document(SHORTEST_TOKENS - 2)
        length, place = random_generator("stream", *self.seed, self.drawn).random(2).tolist()
        self.drawn += 1
        start, tokens = passage_bounds(len(self.passage_rest), self.max_tokens, length, place if self.spread else 0)
        taken, self.passage_rest = np.split(self.passage_rest[start:], [tokens])
        return taken

    def row(self) -> np.ndarray:
        parts, missing = [self.row_rest], self.max_tokens - 2 - len(self.row_rest)
        while missing > 0:
            parts.append(np.append(self.document(), self.tokenizer.sep_token_id))
            missing -= len(parts[-1])
        joined = np.concatenate(parts)
        self.row_rest = joined[self.max_tokens - 2 :]
        return joined[: self.max_tokens - 2]

    def document(self, shortest: int = 1) -> np.ndarray:
        """Return the tokens of the next document that has as many as `shortest`; after the last comes the first."""
        ends = self.ends
        while self.ends - ends < 2:
            for row in self.stream:
                self.position = self.rows.state_dict()
                if len(row["ids"]) >= shortest:
                    return row["ids"]
            self.ends += 1
            self.go_to(self.beginning)
        raise ValueError(f"source {self.name} has no document of {shortest} tokens or more")

    def go_to(self, position: dict):
        """Read on from a state of the stream."""
        self.stream, self.position = None, position  # an iterator that is still there would move the position
        self.rows.load_state_dict(position)
        self.stream = iter(self.rows)

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """Return how often each token occurs in the texts that are read next; (vocab_size,) int64."""
        state, counts, chars = self.state(), np.zeros(vocab_size, dtype=np.int64), 0
        for row in self.stream:
            counts += np.bincount(row["ids"], minlength=vocab_size)
            chars += row["chars"]
            if chars >= COUNTED_CHARS:
                break
        self.restore(state)
        return counts

    def state(self) -> dict:
        """Return the position in the stream and what is left of the documents in hand."""
        rests = {"row": self.row_rest.tolist(), "passage": self.passage_rest.tolist()}
        return {"rows": self.position, "drawn": self.drawn} | rests

    def restore(self, state: dict):
        """Resume from a position."""
        self.go_to(state["rows"])
        self.drawn = state["drawn"]
        self.row_rest, self.passage_rest = (np.array(state[kind], dtype=np.int32) for kind in ("row", "passage"))
