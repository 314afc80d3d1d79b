"""Batches for retrieval: queries, documents, which document answers which query, and which pairs the loss compares.

There are two kinds of query. Labeled queries come with the data. Passages make pairs from raw text: a passage that is
cut out of a document is the query, and what is left of the document answers it.

A labeled query and one of its answers make an item. `data.form` decides what a batch counts, a unit: with `pairs` one
query and one document, with `grouped` and `all` one item with its negatives.

A step's batch is made as a whole, from (seed, step) alone, and dealt out to the processes in order. So the number of
processes changes which of them encodes a text, but not what is learned.
"""

import logging
import math

import numpy as np
import torch

from .tokens import TokenTask, wrap

logger = logging.getLogger(__name__)

KEEP_IDF = 4.0  # a query token is kept with the probability idf / KEEP_IDF, clipped to KEEP_RANGE
KEEP_RANGE = 0.1, 0.9
ORDER, STEP, NEGATIVES = range(3)  # second number of every seed: different uses get different random numbers


def query_limit(settings) -> int:
    """Return how many tokens a query may have, special tokens included."""
    return settings.query_tokens or settings.document_tokens


def report_tasks(tasks: list[TokenTask], settings):
    """Log how many texts exceed their limit of tokens, and how many queries have fewer given negatives than they need.

    Args:
        settings: document_tokens, document_window, query_tokens (None: as documents), passage_share, passage_tokens,
            negatives.
    """
    longest = settings.document_tokens
    documents = [document for task in tasks for document in task.documents]
    long_documents = sum(len(document) + 2 > longest for document in documents)
    if long_documents:
        what = "cut to their first tokens" if settings.document_window == "first" else "read in random windows"
        message = "%d of %d documents exceed data.document_tokens=%d: %s"
        logger.warning(message, long_documents, len(documents), longest, what)
    key, limit = "document_tokens" if settings.query_tokens is None else "query_tokens", query_limit(settings)
    long_queries = sum(len(query) + 2 > limit for task in tasks for query in task.queries)
    if long_queries:
        logger.warning("%d queries are cut to data.%s=%d", long_queries, key, limit)
    if settings.passage_share and settings.passage_tokens[1] + 2 > limit:
        logger.warning("passages of more than %d tokens are cut to data.%s=%d", limit - 2, key, limit)
    counts = [len(negatives) for task in tasks for negatives in task.negatives]
    if any(counts):
        short = sum(count < settings.negatives for count in counts)
        message = "%d queries have given negatives; %d of all have fewer than data.negatives, the rest is random"
        logger.info(message, sum(map(bool, counts)), short)


class PairBatches:
    """Endless batches of one process. Documents and queries are numbered consecutively over all tasks.

    Args:
        tasks: tokenized training tasks.
        settings: form, batch_size, negatives, document_window, document_tokens, query_tokens, passage_share,
            passages_per_document, passage_tokens (shortest, longest); see configs/opl-small.yaml.
        special: ids of [CLS] and [SEP].
        rank, world: number of this process, and number of processes.
        idf: (vocab_size,) inverse document frequencies for query dropout; None keeps every query token.

    Raises:
        ValueError: a batch is smaller than the number of processes, or a task has too few documents for the negatives
            of a query.
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
        self.ranges = []  # for each task: its first document, and the number of its documents
        self.answers, self.given = [], []  # for each query: the documents that answer it, its given negatives
        self.pools = []  # for each query: the name of its task, and the first and the end of the task's documents
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
        self.units = len(self.items)  # units in an epoch
        if settings.form == "pairs":
            self.units *= 1 + settings.negatives
        self.step = 0
        self._order = None, None  # the last epoch that was looked at, and its permutation of the units

    def steps_of(self, epochs: float) -> int:
        """Return the number of steps in which every unit comes `epochs` times. data.passage_share must be below 1."""
        labeled = math.ceil(epochs * self.units / self.settings.batch_size)
        return math.ceil(labeled / (1 - self.settings.passage_share))

    def next_batch(self) -> dict:
        """Return the batch of the next step; see `batch`."""
        self.step += 1
        return self.batch(self.step)

    def state(self) -> dict:
        """Return the position after the batches returned so far, for `restore`."""
        return {"step": self.step}

    def restore(self, state: dict):
        """Go back to the position that `state` returned."""
        self.step = state["step"]

    def batch(self, step: int) -> dict:
        """Return the texts that this process encodes in a step, and how the texts of all processes are compared.

        Args:
            step: counted from 1.

        Returns:
            queries, documents: this process's share, rows of token ids with [CLS] and [SEP].
            relevant, compared: (Q, D) bool over the texts of all processes, in the order of ranks.
            query_ids, document_ids: (Q,), (D,) indices into self.queries and self.documents; None for passages.
        """
        rng = np.random.default_rng([self.seed, STEP, step])
        # Of the first n steps, floor(n * passage_share) have passages. Labeled batches are numbered from 0.
        passage_steps_before, passage_steps = (math.floor(n * self.settings.passage_share) for n in (step - 1, step))
        if passage_steps > passage_steps_before:
            batch = self._passages(rng)
        else:
            batch = self._labeled(step - 1 - passage_steps_before, rng)
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
        """Return the query id and the document ids of a unit, numbered from the start of training.

        Every epoch has all units in a random order of its own.
        """
        epoch, offset = divmod(number, self.units)
        if self._order[0] != epoch:
            order = np.random.default_rng([self.seed, ORDER, epoch]).permutation(self.units)
            self._order = epoch, order
        unit = int(self._order[1][offset])
        if self.settings.form == "pairs":
            item, position = divmod(unit, 1 + self.settings.negatives)  # position 0 is the answer
            query, answer = self.items[item]
            return query, [answer if position == 0 else self.negatives(epoch, item)[position - 1]]
        query, answer = self.items[unit]
        return query, [answer, *self.negatives(epoch, unit)]

    def negatives(self, epoch: int, item: int) -> list[int]:
        """Return the negatives of an item in an epoch; they are the same in every form.

        The given ones come first. The others are drawn at random from those documents of the task that do not answer
        the query.
        """
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
        """Return a batch whose queries are passages and whose documents are what is left of the passages' documents.

        All documents come from one task, so that they are hard negatives of each other. The task is drawn with a
        probability proportional to the square root of its number of documents.
        """
        weights = np.sqrt([count for _, count in self.ranges])
        first, count = self.ranges[rng.choice(len(self.ranges), p=weights / weights.sum())]
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
        """Cut passages out of a window of a document. Return the passages and the rest of the window.

        The window is split into parts, one for each passage. A part has a share of the document_tokens that the rest
        may have. A passage takes at most half of its part, or, if this is more, what exceeds the part's share. So every
        part keeps some text.
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
        """Return `tokens` consecutive tokens of a document, or all if it has fewer.

        They are the first ones, or begin at random, as `data.document_window` says.
        """
        row = self.documents[document]
        if self.settings.document_window == "first":
            return row[:tokens]
        start = int(rng.integers(0, max(len(row) - tokens, 0) + 1))
        return row[start : start + tokens]

    def _drop(self, query: np.ndarray, rng) -> np.ndarray:
        """Drop query tokens at random, frequent ones with a higher probability. At least one token stays."""
        keep = rng.random(len(query)) < (self.idf[query] / KEEP_IDF).clip(*KEEP_RANGE)
        return query[keep] if keep.any() else query[:1]
