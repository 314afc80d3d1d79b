"""Rankers: a retrieval task in, a score for every query and document out."""

import logging

import bm25s
import numpy as np

from .encoders import Encoder
from .locov1 import RetrievalTask

logging.getLogger("bm25s").setLevel(logging.WARNING)  # bm25s sets it to DEBUG

Run = dict[str, dict[str, float]]  # {qid: {pid: score}}, higher is better


class DenseRanker:
    """Exact search by cosine over the vectors of an encoder."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder

    def rank(self, task: RetrievalTask) -> Run:
        """Embed queries and documents and score all pairs.

        Raises:
            ValueError: a vector is not finite; the error names the text.
        """
        queries = self.encoder.encode(list(task.queries.values()), "query")
        documents = self.encoder.encode(list(task.documents.values()), "document")
        return rank_vectors(task, queries, documents)


def rank_vectors(task: RetrievalTask, queries: np.ndarray, documents: np.ndarray) -> Run:
    """Scores of all pairs from unit rows in the task's order: queries (Q, d), documents (D, d), float32."""
    _check_finite(list(task.queries), queries)
    _check_finite(list(task.documents), documents)
    return _as_run(task, queries @ documents.T)


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
        """Index the documents and score every query against each of them."""
        return _as_run(task, Bm25Index(task).scores(list(task.queries.values())))


def _check_finite(ids: list[str], vectors: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise ValueError(
            f"the vector of {ids[bad[0]]!r} is not finite ({bad.size} of {len(ids)}); the encoder is broken"
        )


def _as_run(task: RetrievalTask, scores: np.ndarray) -> Run:
    """Name the scores (Q, D), which are in the task's order."""
    rows = zip(task.queries, scores.tolist(), strict=True)
    return {qid: dict(zip(task.documents, row, strict=True)) for qid, row in rows}
