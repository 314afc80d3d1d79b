"""Rankers: a retrieval task in, the best documents of every query out."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import bm25s
import numpy as np

from .encoders.cache import VectorStore
from .encoders.policies import Policy, Truncate
from .encoders.protocol import Encoder
from .encoders.vector_shelf import TimedVectors
from .fusion import rerank_order
from .progress import Count, counted
from .search import DEPTH, SCORES_AT_ONCE, ExactSearch, Run, check_finite, trec_order
from .tasks.schema import RetrievalTask

__all__ = ["DEPTH", "Bm25Index", "Bm25Ranker", "DenseRanker", "Run"]

logging.getLogger("bm25s").setLevel(logging.WARNING)  # bm25s sets it to DEBUG

BLOCK_DOCUMENTS = 4_096  # whose vectors are in memory together
BLOCK_CHARS = 16_000_000  # or fewer documents, if they are long: chunk policies give them many vectors


class DenseRanker:
    """Exact search by cosine over the vectors of an encoder; a document counts by its best vector.

    Args:
        policy: what happens to documents that are longer than the encoder takes.
        store: where vectors are kept; by default nowhere.

    Attributes:
        report: what the last `rank` or `rerank` cost and read: vectors_per_document, seen_share of the documents,
            truncated_documents and truncated_queries (None where the encoder does not show its tokens),
            seconds_per_document,
            seconds_per_query, dimensions, max_tokens (the longest input under the policy). Seconds are those of when
            the vectors were computed, tokenization included.
    """

    def __init__(self, encoder: Encoder, policy: Policy | None = None, store: VectorStore | None = None):
        self.encoder = encoder
        self.policy = policy or Truncate()
        self.store = store or VectorStore(None)
        self.report: dict = {}

    def rank(self, task: RetrievalTask) -> Run:
        """Embed queries and documents and score all pairs.

        Raises:
            ValueError: the policy cannot work with the encoder; or a vector is not finite, and the error names the
                text.
        """
        search = ExactSearch(list(task.documents), len(task.queries))
        measured = _Measured()
        with self._counted(task, list(task.documents)) as count:
            queries = self._queries(task, count)
            for pids, timed in self._documents(task, list(task.documents), count):
                search.add_vectors(queries.vectors.rows, pids, timed.vectors.rows, timed.vectors.counts)
                measured.add(timed)
        self._report(measured, queries)
        return search.run(list(task.queries))

    def rerank(self, task: RetrievalTask, candidates: Run, depth: int) -> Run:
        """The first `depth` candidates of every query by cosine; after them the others in the order they had.

        Only documents that are among the first `depth` of some query are embedded.

        Raises:
            ValueError: depth < 1; no query has a candidate; or as `rank`.
        """
        if depth < 1 or not any(candidates.values()):
            raise ValueError(f"nothing to rerank with depth={depth}; it must be at least 1, and some candidates given")
        chosen = {qid: trec_order(candidates.get(qid, {}))[:depth] for qid in task.queries}
        asking: dict[str, list[str]] = {}  # which queries have the document among their first
        for qid, pids in chosen.items():
            for pid in pids:
                asking.setdefault(pid, []).append(qid)
        scores: Run = {qid: {} for qid in chosen}
        measured = _Measured()
        with self._counted(task, list(asking)) as count:
            queries = self._queries(task, count)
            rows = dict(zip(task.queries, queries.vectors.rows, strict=True))
            for pids, timed in self._documents(task, list(asking), count):
                documents = np.split(timed.vectors.rows, np.cumsum(timed.vectors.counts)[:-1])
                for pid, vectors in zip(pids, documents, strict=True):
                    best = (np.stack([rows[qid] for qid in asking[pid]]) @ vectors.T).max(axis=1)
                    for qid, score in zip(asking[pid], best.tolist(), strict=True):
                        scores[qid][pid] = score
                measured.add(timed)
        self._report(measured, queries)
        return rerank_order(candidates, scores)

    def _counted(self, task: RetrievalTask, pids: list[str]) -> AbstractContextManager[Count]:
        """One bar for queries and documents: characters decide how long it takes, texts are shown."""
        chars = _chars(task.queries.values()) + _chars(task.documents[pid] for pid in pids)
        name = f"{self.encoder.name} / {self.policy.spec}"
        return counted(chars, name, "text", shown_total=len(task.queries) + len(pids))

    def _queries(self, task: RetrievalTask, count: Count) -> TimedVectors:
        with count.part(_chars(task.queries.values())):
            timed = self.store.embed(self.encoder, None, list(task.queries.values()))
        check_finite(list(task.queries), timed.vectors.rows)
        return timed

    def _documents(
        self, task: RetrievalTask, pids: list[str], count: Count
    ) -> Iterator[tuple[list[str], TimedVectors]]:
        """The vectors of documents, a block at a time."""
        for block in _blocks(pids, task.documents):
            texts = [task.documents[pid] for pid in block]
            with count.part(_chars(texts)):
                timed = self.store.embed(self.encoder, self.policy, texts)
            check_finite(np.repeat(block, timed.vectors.counts).tolist(), timed.vectors.rows)
            yield block, timed

    def _report(self, measured: "_Measured", queries: TimedVectors) -> None:
        self.report = measured.summary() | {
            "truncated_queries": read_of(queries.vectors.seen)[1],
            "seconds_per_query": float(queries.seconds.mean()),
            "dimensions": int(queries.vectors.rows.shape[1]),
            "max_tokens": self.policy.input_tokens(self.encoder),
        }


class _Measured:
    """Sums over the documents that were embedded."""

    def __init__(self):
        self.seen, self.counts, self.seconds = [], [], []

    def add(self, timed: TimedVectors) -> None:
        self.seen.append(timed.vectors.seen)
        self.counts.append(timed.vectors.counts)
        self.seconds.append(timed.seconds)

    def summary(self) -> dict:
        seen, counts, seconds = (np.concatenate(parts) for parts in (self.seen, self.counts, self.seconds))
        share, truncated = read_of(seen)
        return {
            "vectors_per_document": float(counts.mean()),
            "seen_share": share,
            "truncated_documents": truncated,
            "seconds_per_document": float(seconds.mean(dtype=np.float64)),
        }


def read_of(seen: np.ndarray) -> tuple[float | None, int | None]:
    """The mean share of texts that was read, and how many were cut; None where the encoder does not show its tokens.

    Args:
        seen: see `DocumentVectors`.
    """
    return (float(seen.mean()), int((seen < 1).sum())) if np.isfinite(seen).all() else (None, None)


def _chars(texts: Iterable[str]) -> int:
    return sum(map(len, texts))


def _blocks(pids: list[str], documents: dict[str, str]) -> Iterator[list[str]]:
    block: list[str] = []
    chars = 0
    for pid in pids:
        if len(block) == BLOCK_DOCUMENTS or (block and chars + len(documents[pid]) > BLOCK_CHARS):
            yield block
            block, chars = [], 0
        block.append(pid)
        chars += len(documents[pid])
    yield block


class Bm25Index:
    """BM25 with bm25s' defaults (Lucene's variant, k1 1.5, b 0.75), English stop words, no stemmer.

    Raises:
        ValueError: no document of the task has a word that is no stop word.
    """

    def __init__(self, task: RetrievalTask):
        tokens = bm25s.tokenize(list(task.documents.values()), stopwords="en", show_progress=False)
        if not any(tokens.ids):
            raise ValueError(f"no document of task {task.name!r} has a word to index; check its passages")
        self.vocabulary, self.index = tokens.vocab, bm25s.BM25()
        self.index.index(tokens, show_progress=False)
        self.nothing = np.zeros(len(task.documents), dtype=np.float32)

    def scores(self, queries: list[str]) -> np.ndarray:
        """Of every query against each document, (Q, D) float32, documents in the task's order."""
        tokens = bm25s.tokenize(queries, stopwords="en", return_ids=False, show_progress=False)
        known = [[token for token in query if token in self.vocabulary] for query in tokens]
        return np.stack([self.index.get_scores(query) if query else self.nothing for query in known])


class Bm25Ranker:
    """See `Bm25Index`."""

    def rank(self, task: RetrievalTask) -> Run:
        """The documents that share a word with the query; the others have no rank, which a fusion would reward."""
        index, pids, texts = Bm25Index(task), list(task.documents), list(task.queries.values())
        search = ExactSearch(pids, len(texts))
        step = max(1, SCORES_AT_ONCE // len(pids))
        for first in range(0, len(texts), step):
            search.add_scores(pids, index.scores(texts[first : first + step]), first)
        found = search.run(list(task.queries))
        return {qid: {pid: score for pid, score in scores.items() if score > 0} for qid, scores in found.items()}
