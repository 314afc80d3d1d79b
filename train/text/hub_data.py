"""Pretraining text streamed from the Hub, tokenised as it arrives. The one file of pretraining that needs `datasets`.

Processes share a stream by its shards where these divide evenly, else row by row. Documents come in the order of the
data set, again and again. A resumed run sees the documents that the interrupted one would have seen.
"""

from collections.abc import Callable

import numpy as np
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node

from ..settings import SHORTEST_TOKENS
from ..tokenizer import encode_all
from .text_examples import framed, is_long_enough, passage_bounds, random_generator
from .text_files import check_text
from .text_sources import Source

CHARS_AT_ONCE = 2**18  # of text read ahead and tokenised in one call


def open_stream(source: Source, split: str, rank: int, world: int):
    """A process's share of a split: rows whose text column holds a text, or `rows_per_document` texts.

    Raises:
        ValueError: there is no such data set, configuration, split or column.
    """
    column = source.column or "text"
    try:
        rows = load_dataset(source.path, source.config, split=split, revision=source.revision, streaming=True)
        names = rows.column_names or list(next(iter(rows), {column: None}))
    except (OSError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise ValueError(
            f"source {source.path!r} is no local path and cannot be read from the Hub: {message}"
        ) from error
    if column not in names:
        raise ValueError(f"source {source.path} has no column {column!r} (it has {', '.join(names)})")
    rows = rows.select_columns(column)
    if source.rows_per_document > 1:  # before the split, which may deal out single rows
        rows = rows.batch(source.rows_per_document)
    return split_dataset_by_node(rows, rank=rank, world_size=world)


class StreamedExamples:
    """Examples of a streamed source, without end; the two kinds take turns in reading the same stream.

    Neither leaves text unused that was read and tokenised: rows are cut from documents joined, and the passages of a
    document follow one another until less than the shortest example is left of it, unless they are to be spread.

    Args:
        rows: an iterable of {column: text or texts} with `state_dict` and `load_state_dict`; see `open_stream`.
        max_tokens: [CLS] and [SEP] included.
        seed: numbers that set this source and process apart.
        keep: whether to read a text at all.
        spread: take one passage of each document, at a random place: a few examples should be of many documents.
    """

    def __init__(self, rows, source: Source, max_tokens: int, tokenizer, seed: tuple[int, ...],
                 keep: Callable[[str], bool] = lambda text: True, spread: bool = False):  # fmt: skip
        self.rows, self.source, self.keep, self.spread = rows, source, keep, spread
        self.max_tokens, self.tokenizer, self.seed = max_tokens, tokenizer, seed
        self.beginning = rows.state_dict()
        self.restore({"group": self.beginning, "read": 0, "row": [], "passage": [], "drawn": 0})

    def take(self, kind: str, count: int) -> list[np.ndarray]:
        """The next examples: token ids, int32, special tokens included.

        Raises:
            ValueError: the source has no text, or none that is long enough.
        """
        make = {"variable": self.passage, "maximum": self.row}[kind]
        return [framed(make(), self.tokenizer.cls_token_id, self.tokenizer.sep_token_id) for _ in range(count)]

    def passage(self) -> np.ndarray:
        if self.spread or not is_long_enough(len(self.passage_rest)):
            self.passage_rest = self.long_document()
        length, place = random_generator("stream", *self.seed, self.drawn).random(2).tolist()
        self.drawn += 1
        start, tokens = passage_bounds(len(self.passage_rest), self.max_tokens, length, place if self.spread else 0)
        taken, self.passage_rest = np.split(self.passage_rest[start:], [tokens])
        return taken

    def long_document(self) -> np.ndarray:
        ends = self.ends
        while not is_long_enough(len(document := self.document())):
            if self.ends - ends > 1:
                raise ValueError(f"source {self.source.name} has no document of {SHORTEST_TOKENS - 2} tokens or more")
        return document

    def row(self) -> np.ndarray:
        parts, missing = [self.row_rest], self.max_tokens - 2 - len(self.row_rest)
        while missing > 0:
            parts.append(np.append(self.document(), self.tokenizer.sep_token_id))
            missing -= len(parts[-1])
        joined = np.concatenate(parts)
        self.row_rest = joined[self.max_tokens - 2 :]
        return joined[: self.max_tokens - 2]

    def document(self) -> np.ndarray:
        """Tokens of the next document that has any."""
        ends = self.ends
        while True:
            while self.read == len(self.group):
                if self.ends - ends > 1:
                    raise ValueError(f"source {self.source.name} ({self.source.path}) has no text")
                self.read_group()
            self.read += 1
            if len(document := self.group[self.read - 1]):
                return document

    def read_group(self):
        """Read and tokenise the next few texts, fewer at the end of the source; after it comes its beginning."""
        self.group_start, self.read = self.position, 0
        texts, chars = [], 0
        for text in self.texts:
            if self.keep(text):
                texts.append(text)
                chars += len(text)
            if chars >= CHARS_AT_ONCE:
                self.position = self.rows.state_dict()
                break
        else:
            self.ends += 1
            self.go_to(self.beginning)
        self.group = encode_all(self.tokenizer, texts) if texts else []

    def go_to(self, position: dict):
        """Read on from a state of the stream."""
        self.rows.load_state_dict(position)
        self.position = position
        self.texts = (self.text_of(row) for row in self.rows)

    def text_of(self, row: dict) -> str:
        column = self.source.column or "text"
        texts = row[column] if self.source.rows_per_document > 1 else [row[column]]
        return "\n".join(check_text(text, f"{self.source.path}, column {column!r}") for text in texts)

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """How often each token occurs in the texts that are read next; (vocab_size,) int64."""
        state = self.state()
        documents = [self.document(), *self.group[self.read :]]
        self.restore(state)
        return np.bincount(np.concatenate(documents), minlength=vocab_size)

    def state(self) -> dict:
        """Where the texts read ahead began, how many of them were used, what is left of the documents in hand."""
        rests = {"row": self.row_rest.tolist(), "passage": self.passage_rest.tolist()}
        return {"group": self.group_start, "read": self.read, "drawn": self.drawn} | rests

    def restore(self, state: dict):
        self.go_to(state["group"])
        self.group, self.group_start, self.read, self.ends = [], state["group"], 0, 0
        if state["read"]:
            self.read_group()
        self.read, self.drawn = state["read"], state["drawn"]
        self.row_rest, self.passage_rest = (np.array(state[kind], dtype=np.int32) for kind in ("row", "passage"))
