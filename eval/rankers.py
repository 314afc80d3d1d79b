"""Rankers: a retrieval task in, the best documents of every query out."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from .encoders.cache import VectorStore, portions
from .encoders.policies import DocumentVectors, Policy, Truncate
from .encoders.protocol import Encoder
from .progress import counted
from .search import SCORES_AT_ONCE, ExactSearch, Run, rerank_order, trec_order
from .tasks.schema import RetrievalTask

BLOCK_DOCUMENTS = 4_096  # whose vectors are in memory together
BLOCK_CHARS = 16_000_000  # or fewer documents, if they are long: chunk policies give them many vectors


class DenseRanker:
    """Rank by cosine over the vectors of an encoder; a document counts by its best vector.

    Args:
        policy: what happens to documents that are longer than the encoder takes.
        store: where vectors are kept; by default nowhere.
        beside: the other policies of the run; what shares a pass with this one is computed with it, and kept.

    Attributes:
        report: what the last `rank` or `rerank` read and cost, None where the encoder does not show its tokens. Seconds
            are those of when the vectors were computed, tokenization included.
    """

    def __init__(
        self,
        encoder: Encoder,
        policy: Policy | None = None,
        store: VectorStore | None = None,
        beside: Sequence[Policy] = (),
    ):
        self.encoder = encoder
        self.policy = policy or Truncate()
        self.store = store or VectorStore(None)
        self.beside = beside
        self.report: dict = {}

    def rank(self, task: RetrievalTask) -> Run:
        """Embed queries and documents and score all pairs."""
        search = ExactSearch(list(task.documents), len(task.queries))
        for queries, pids, vectors in self._embedded(task, list(task.documents)):
            search.add_vectors(queries, pids, vectors.rows, vectors.counts)
        return search.run(list(task.queries))

    def rerank(self, task: RetrievalTask, candidates: Run, depth: int) -> Run:
        """Order the first `depth` candidates of every query by cosine; after them come the others as they were.

        Only documents that are among the first `depth` of some query are embedded.
        """
        asking: dict[str, list[str]] = {}  # which queries have the document among their first
        for qid in task.queries:
            for pid in trec_order(candidates.get(qid, {}))[:depth]:
                asking.setdefault(pid, []).append(qid)
        if not asking:
            return candidates
        scores: Run = {qid: {} for qid in task.queries}
        for queries, pids, vectors in self._embedded(task, list(asking)):
            rows = dict(zip(task.queries, queries, strict=True))
            documents = np.split(vectors.rows, np.cumsum(vectors.counts)[:-1])
            for pid, its in zip(pids, documents, strict=True):
                best = (np.stack([rows[qid] for qid in asking[pid]]) @ its.T).max(axis=1)
                for qid, score in zip(asking[pid], best.tolist(), strict=True):
                    scores[qid][pid] = score
        return rerank_order(candidates, scores)

    def _embedded(
        self, task: RetrievalTask, pids: list[str]
    ) -> Iterator[tuple[np.ndarray, list[str], DocumentVectors]]:
        """Yield the queries' rows, and ids and vectors of documents, a block at a time; then make the report.

        One bar is shown for queries and documents: characters decide how long it takes, texts are shown.
        """
        queries, texts = list(task.queries.values()), [task.documents[pid] for pid in pids]
        name, total = f"{self.encoder.name} / {self.policy.spec}", _chars(queries) + _chars(texts)
        measured = []
        with counted(total, name, "text", shown_total=len(queries) + len(texts)) as count:
            with count.part(_chars(queries)):
                asked = self.store.embed(self.encoder, None, queries)
            for block in portions(texts, BLOCK_CHARS, BLOCK_DOCUMENTS):
                with count.part(_chars(texts[block])):
                    vectors, seconds = self.store.embed(self.encoder, self.policy, texts[block], self.beside)
                yield asked.vectors.rows, pids[block], vectors
                measured.append((vectors.counts, vectors.seen, seconds))
        counts, seen, seconds = (np.concatenate(parts) for parts in zip(*measured, strict=True))
        share, truncated = read_of(seen)
        self.report = {
            "vectors_per_document": float(counts.mean()),
            "seen_share": share,
            "truncated_documents": truncated,
            "seconds_per_document": float(seconds.mean(dtype=np.float64)),
            "truncated_queries": read_of(asked.vectors.seen)[1],
            "seconds_per_query": float(asked.seconds.mean()),
            "dimensions": int(asked.vectors.rows.shape[1]),
            "max_tokens": self.policy.input_tokens(self.encoder),
        }


def read_of(seen: np.ndarray) -> tuple[float | None, int | None]:
    """Return the mean fraction of texts that was read (see `DocumentVectors.seen`), and how many were cut, or None."""
    return (float(seen.mean()), int((seen < 1).sum())) if np.isfinite(seen).all() else (None, None)


def _chars(texts: list[str]) -> int:
    return sum(map(len, texts))


class Bm25Index:
    """Index with BM25 by bm25s' defaults (Lucene's variant, k1 1.5, b 0.75), English stop words, no stemmer."""

    def __init__(self, task: RetrievalTask):
        import bm25s  # slow to import

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # the import sets it to DEBUG
        self._tokenize = bm25s.tokenize
        tokens = bm25s.tokenize(list(task.documents.values()), stopwords="en", show_progress=False)
        if not any(tokens.ids):
            raise ValueError(f"no document of task {task.name!r} has a word to index; check its passages")
        self.vocabulary, self.index = tokens.vocab, bm25s.BM25()
        self.index.index(tokens, show_progress=False)
        self.nothing = np.zeros(len(task.documents), dtype=np.float32)

    def scores(self, queries: list[str]) -> np.ndarray:
        """Return every query's score of each document, (Q, D) float32, documents in the task's order."""
        tokens = self._tokenize(queries, stopwords="en", return_ids=False, show_progress=False)
        known = [[token for token in query if token in self.vocabulary] for query in tokens]
        return np.stack([self.index.get_scores(query) if query else self.nothing for query in known])


class Bm25Ranker:
    """Rank with a `Bm25Index`."""

    def rank(self, task: RetrievalTask) -> Run:
        """Rank the documents that share a word with the query; a fusion would reward a rank of the others."""
        index, pids, texts = Bm25Index(task), list(task.documents), list(task.queries.values())
        search = ExactSearch(pids, len(texts))
        step = max(1, SCORES_AT_ONCE // len(pids))
        for first in range(0, len(texts), step):
            search.add_scores(pids, index.scores(texts[first : first + step]), first)
        found = search.run(list(task.queries))
        return {qid: {pid: score for pid, score in scores.items() if score > 0} for qid, scores in found.items()}


def rank_tfidf(task: RetrievalTask, width: int, seeds: int) -> Iterator[Run]:
    """Yield rankings by TF-IDF times Gaussian random matrices, one a seed: word counts alone in `width` dimensions.

    A text without a known word becomes the zero vector.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    pids = list(task.documents)
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    documents = vectorizer.fit_transform(task.documents.values())
    tables = [table.astype(np.float32) for table in (vectorizer.transform(task.queries.values()), documents)]
    for seed in range(seeds):
        matrix = np.random.default_rng(seed).standard_normal((documents.shape[1], width), dtype=np.float32)
        queries, rows = (normalize(table @ matrix / np.float32(width**0.5)).astype(np.float32) for table in tables)
        search = ExactSearch(pids, len(queries))
        search.add_vectors(queries, pids, rows, np.ones(len(pids), dtype=np.int64))
        yield search.run(list(task.queries))
