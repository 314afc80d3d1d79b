"""Batches for retrieval: queries, documents, which document answers which query, and which pairs the loss compares.

There are two kinds of query. Labeled queries come with the data. Passages make pairs from raw text: a passage that is
cut out of a document is the query, and what is left of the document answers it.

A step's batch is made as a whole, from (seed, step) alone, and dealt out to the processes in order. Their number
changes who encodes a text, not what is learned.
"""

import logging
import math

import numpy as np
import torch

from .tokens import TokenTask, wrap

logger = logging.getLogger(__name__)

KEEP_IDF = 4.0  # a query token is kept with the probability idf / KEEP_IDF, clipped to KEEP_RANGE
KEEP_RANGE = 0.1, 0.9
ORDER, STEP, NEGATIVES = range(3)  # part of a seed: keeps the random streams of different uses apart


def query_limit(settings) -> int:
    """Return how many tokens a query may have, special tokens included."""
    return settings.query_tokens or settings.document_tokens


def report_tasks(tasks: list[TokenTask], settings):
    """Log how many texts are longer than what is read of them, special tokens included, and how many queries have
    fewer given negatives than are used.

    Args:
        settings: document_tokens, document_window, query_tokens (None: as documents), passage_share, passage_tokens,
            negatives.
    """
    longest = settings.document_tokens
    documents = [document for task in tasks for document in task.documents]
    long_documents = sum(len(document) + 2 > longest for document in documents)
    if long_documents:
        what = "cut to their first tokens" if settings.document_window == "first" else "read in random windows"
        counts = long_documents, len(documents)
        logger.warning("%d of %d documents exceed data.document_tokens=%d: %s", *counts, longest, what)
    key, limit = "document_tokens" if settings.query_tokens is None else "query_tokens", query_limit(settings)
    long_queries = sum(len(query) + 2 > limit for task in tasks for query in task.queries)
    if long_queries:
        logger.warning("%d queries are cut to data.%s=%d", long_queries, key, limit)
    if settings.passage_share and settings.passage_tokens[1] + 2 > limit:
        logger.warning("passages of more than %d tokens are cut to data.%s=%d", limit - 2, key, limit)
    given = [len(negatives) for task in tasks for negatives in task.negatives]
    if any(given):
        short = sum(count < settings.negatives for count in given)
        message = "%d queries have given negatives; %d of all have fewer than data.negatives, the rest is random"
        logger.info(message, sum(map(bool, given)), short)


class PairBatches:
    """Endless batches of one process. Documents and queries are numbered consecutively over all tasks.

    Args:
        tasks: what to train on.
        settings: form, batch_size, negatives, document_window, document_tokens, query_tokens, passage_share,
            passages_per_document, passage_tokens (shortest, longest); see configs/opl-small.yaml.
        special: ids of [CLS] and [SEP].
        rank, world: this process, and how many there are.
        idf: (vocab_size,) for query dropout; None keeps every query token.

    Raises:
        ValueError: a batch with fewer items than there are processes, or a task with fewer
            documents than a query needs negatives.
    """

    def __init__(
        self, tasks: list[TokenTask], settings, special: tuple[int, int], seed: int, rank=0, world=1, idf=None
    ):
        if settings.batch_size < world:
            raise ValueError(
                f"data.batch_size={settings.batch_size} counts all processes together, and there are {world}; each "
                "needs a query: raise it, or start fewer processes"
            )
        self.settings, self.special, self.seed, self.rank, self.world, self.idf = (
            settings, special, seed, rank, world, idf)  # fmt: skip
        self.documents = [document for task in tasks for document in task.documents]
        self.queries = [query for task in tasks for query in task.queries]
        self.ranges = []  # of each task's documents: the first, how many
        # Of each query: its answers, its given negatives, and its pool: the name of its task, and the first and the end
        # of the task's documents.
        self.answers, self.given, self.pools = [], [], []
        first = 0
        for task in tasks:
            self.pools += [(task.name, first, first + len(task.documents))] * len(task.queries)
            self.answers += [[first + i for i in answers] for answers in task.answers]
            self.given += [[first + i for i in pids[: settings.negatives]] for pids in task.negatives]
            self.ranges.append((first, len(task.documents)))
            first += len(task.documents)
        self.items = [(query, answer) for query, answers in enumerate(self.answers) for answer in answers]
        for query, (name, first, end) in enumerate(self.pools):
            answers = len(self.answers[query])
            if end - first - answers < settings.negatives:
                raise ValueError(
                    f"task {name!r} has {end - first} documents, too few for data.negatives={settings.negatives} "
                    f"besides the {answers} that answer a query; lower data.negatives, or leave the task out"
                )
        self.units = len(self.items) * (
            (1 + settings.negatives) if settings.form == "pairs" else 1
        )  # what a batch counts
        self.step, self._order = 0, (None, None)  # the order: an epoch and its permutation of the units

    def steps_of(self, epochs: float) -> int:
        """Return the steps in which every labeled item is met `epochs` times; in form pairs, with each of its
        negatives. Needs data.passage_share < 1."""
        labeled = math.ceil(epochs * self.units / self.settings.batch_size)
        return math.ceil(labeled / (1 - self.settings.passage_share))

    def next_batch(self) -> dict:
        """Return the next step's batch, as `batch` describes it."""
        self.step += 1
        return self.batch(self.step)

    def state(self) -> dict:
        return {"step": self.step}

    def restore(self, state: dict):
        self.step = state["step"]

    def batch(self, step: int) -> dict:
        """Return what this process encodes in a step, counted from 1, and how all processes' texts are compared.

        Returns:
            queries, documents: this process's share, rows of token ids with [CLS] and [SEP].
            relevant, compared: (Q, D) bool over the texts of all processes, in the order of ranks.
            query_ids, document_ids: (Q,), (D,) indices into self.queries and self.documents; None for passages.
        """
        rng = np.random.default_rng([self.seed, STEP, step])
        # Of the first n steps, floor(n * passage_share) have passages. The labeled ones are numbered from 0.
        before, after = (math.floor(n * self.settings.passage_share) for n in (step - 1, step))
        batch = self._passages(rng) if after > before else self._labeled(step - 1 - before, rng)
        if self.idf is not None:
            batch["queries"] = [self._drop(query, rng) for query in batch["queries"]]
        for side in ("queries", "documents"):
            rows = batch[side]
            first, last = (rank * len(rows) // self.world for rank in (self.rank, self.rank + 1))
            batch[side] = [wrap(row, self.special) for row in rows[first:last]]
        return batch

    def _labeled(self, number: int, rng) -> dict:
        """Return labeled batch `number`, counted from 0."""
        size = self.settings.batch_size
        units = [self._unit(unit) for unit in range(number * size, (number + 1) * size)]
        query_ids = [query for query, _ in units]
        document_ids = [document for _, documents in units for document in documents]
        if self.settings.form == "all":
            document_ids = list(dict.fromkeys(document_ids))
            compared = torch.ones(len(query_ids), len(document_ids), dtype=torch.bool)
        else:
            width = len(units[0][1])  # 1 in form pairs, 1 + negatives in form grouped
            compared = torch.eye(len(units), dtype=torch.bool).repeat_interleave(width, dim=1)
        columns = {}
        for column, document in enumerate(document_ids):
            columns.setdefault(document, []).append(column)
        relevant = torch.zeros_like(compared)
        for row, query in enumerate(query_ids):
            for answer in self.answers[query]:
                relevant[row, columns.get(answer, [])] = True
        limit = query_limit(self.settings)
        return {
            "queries": [self.queries[query][: limit - 2] for query in query_ids],
            "documents": [self._window(document, self.settings.document_tokens - 2, rng) for document in document_ids],
            "relevant": relevant,
            "compared": compared,
            "query_ids": torch.tensor(query_ids),
            "document_ids": torch.tensor(document_ids),
        }

    def _unit(self, number: int) -> tuple[int, list[int]]:
        """Return query id and document ids of the `number`-th unit since the start. An epoch permutes all units."""
        epoch, offset = divmod(number, self.units)
        if self._order[0] != epoch:
            order = np.random.default_rng([self.seed, ORDER, epoch]).permutation(self.units)
            self._order = epoch, order
        unit = int(self._order[1][offset])
        if self.settings.form == "pairs":
            item, slot = divmod(unit, 1 + self.settings.negatives)
            query, answer = self.items[item]
            return query, [answer if slot == 0 else self.negatives(epoch, item)[slot - 1]]
        query, answer = self.items[unit]
        return query, [answer, *self.negatives(epoch, unit)]

    def negatives(self, epoch: int, item: int) -> list[int]:
        """Return the negatives of an item in an epoch, the same in every form: the given ones, then documents of the
        task drawn at random among those that do not answer the query."""
        query = self.items[item][0]
        given, (_, first, end) = self.given[query], self.pools[query]
        missing = self.settings.negatives - len(given)
        if missing == 0:
            return given
        excluded = {*self.answers[query], *given}
        rng = np.random.default_rng([self.seed, NEGATIVES, epoch, item])
        drawn = first + rng.choice(end - first, missing + len(excluded), replace=False)
        return given + [int(document) for document in drawn if int(document) not in excluded][:missing]

    def _passages(self, rng) -> dict:
        """Return a batch of passages, and of what is left of their documents. The documents come from one task, so that
        they are hard negatives of each other. A task is drawn in proportion to the square root of its size."""
        counts = np.sqrt([count for _, count in self.ranges])
        first, count = self.ranges[rng.choice(len(self.ranges), p=counts / counts.sum())]
        size = min(self.settings.batch_size, count)
        queries, documents, answers = [], [], []
        for index in first + rng.choice(count, size, replace=False):
            passages, rest = self._cut(index, rng)
            queries += passages
            answers += [len(documents)] * len(passages)
            documents.append(rest)
        if len(queries) < self.world:
            raise ValueError(
                f"{len(queries)} passages could be cut for {self.world} processes: the documents are too short; set "
                "data.passage_share=0"
            )
        relevant = torch.tensor(answers)[:, None] == torch.arange(len(documents))
        return {"queries": queries, "documents": documents, "relevant": relevant,
                "compared": torch.ones_like(relevant), "query_ids": None, "document_ids": None}  # fmt: skip

    def _cut(self, document: int, rng) -> tuple[list[np.ndarray], np.ndarray]:
        """Cut passages from a window of a document; return them, and the rest of the window: at most document_tokens.

        The window is split into one part a passage. A passage takes at most half of its part, or all that exceeds the
        part's share of document_tokens if that is more. So every part keeps some text.
        """
        count, kept_tokens = self.settings.passages_per_document, self.settings.document_tokens - 2
        shortest, longest = self.settings.passage_tokens
        lengths = np.minimum(rng.integers(shortest, longest + 1, count), query_limit(self.settings) - 2)
        shares = np.full(count, kept_tokens // count) + (np.arange(count) < kept_tokens % count)
        sizes = shares + lengths
        window = self._window(document, int(sizes.sum()), rng)
        ends = sizes.cumsum() * len(window) // sizes.sum()
        passages, rest = [], []
        for part, share, length in zip(np.split(window, ends[:-1]), shares, lengths, strict=True):
            most = max(len(part) // 2, len(part) - share)
            tokens = int(min(length, most))
            start = int(rng.integers(0, len(part) - tokens + 1))
            rest += [part[:start], part[start + tokens :]]
            if tokens:
                passages.append(part[start : start + tokens])
        return passages, np.concatenate(rest)

    def _window(self, document: int, tokens: int, rng) -> np.ndarray:
        """Return a window of a document: its first tokens, or as many from a random start."""
        row = self.documents[document]
        if self.settings.document_window == "first":
            return row[:tokens]
        start = int(rng.integers(0, max(len(row) - tokens, 0) + 1))
        return row[start : start + tokens]

    def _drop(self, query: np.ndarray, rng) -> np.ndarray:
        """Drop query tokens at random, common ones more often than rare ones. At least one token stays."""
        keep = rng.random(len(query)) < (self.idf[query] / KEEP_IDF).clip(*KEEP_RANGE)
        return query[keep] if keep.any() else query[:1]
