"""Rankers take a retrieval task and return the best documents of every query."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from .encoders.cache import VectorStore, portions
from .encoders.policies import DocumentVectors, Policy, Truncate
from .encoders.protocol import Encoder
from .progress import counted
from .search import SCORES_AT_ONCE, ExactSearch, Run, rerank_order, trec_order
from .tasks.schema import RetrievalTask

# The vectors of one block of documents are in memory together. Chunk policies give many vectors to a long document.
BLOCK_DOCUMENTS = 4_096  # at most
BLOCK_CHARS = 16_000_000  # at most, unless one document is longer


class DenseRanker:
    """Rank by the cosine of an encoder's vectors. A document's score is that of its best vector.

    Args:
        policy: what happens to documents that are longer than the encoder's maximum.
        store: where vectors are kept; by default nowhere.
        beside: the other policies of the run. Those that can use the same pass over the documents are computed in it,
            and their vectors are kept.

    Attributes:
        report: how much text the last `rank` or `rerank` read, and what that cost. A value is None if the encoder does
            not show its tokens. The seconds were measured when the vectors were computed, tokenization included.
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
        qids_of: dict[str, list[str]] = {}  # {document: the queries that have it among their first candidates}
        for qid in task.queries:
            for pid in trec_order(candidates.get(qid, {}))[:depth]:
                qids_of.setdefault(pid, []).append(qid)
        if not qids_of:
            return candidates
        scores: Run = {qid: {} for qid in task.queries}
        for queries, pids, vectors in self._embedded(task, list(qids_of)):
            query_rows = dict(zip(task.queries, queries, strict=True))
            documents = np.split(vectors.rows, np.cumsum(vectors.counts)[:-1])
            for pid, rows in zip(pids, documents, strict=True):
                best = (np.stack([query_rows[qid] for qid in qids_of[pid]]) @ rows.T).max(axis=1)
                for qid, score in zip(qids_of[pid], best.tolist(), strict=True):
                    scores[qid][pid] = score
        return rerank_order(candidates, scores)

    def _embedded(
        self, task: RetrievalTask, pids: list[str]
    ) -> Iterator[tuple[np.ndarray, list[str], DocumentVectors]]:
        """Yield the queries' rows, and the ids and vectors of a block of documents, for every block. Set `report` last.

        One progress bar stands for queries and documents. It shows texts, and advances by their characters, which
        decide how long embedding takes.
        """
        queries, texts = list(task.queries.values()), [task.documents[pid] for pid in pids]
        name, total = f"{self.encoder.name} / {self.policy.spec}", _chars(queries) + _chars(texts)
        measured = []
        with counted(total, name, "text", shown_total=len(queries) + len(texts)) as count:
            with count.part(_chars(queries)):
                timed_queries = self.store.embed(self.encoder, None, queries)
            for block in portions(texts, BLOCK_CHARS, BLOCK_DOCUMENTS):
                with count.part(_chars(texts[block])):
                    vectors, seconds = self.store.embed(self.encoder, self.policy, texts[block], self.beside)
                yield timed_queries.vectors.rows, pids[block], vectors
                measured.append((vectors.counts, vectors.seen, seconds))
        counts, seen, seconds = (np.concatenate(parts) for parts in zip(*measured, strict=True))
        share, truncated = read_of(seen)
        self.report = {
            "vectors_per_document": float(counts.mean()),
            "seen_share": share,
            "truncated_documents": truncated,
            "seconds_per_document": float(seconds.mean(dtype=np.float64)),
            "truncated_queries": read_of(timed_queries.vectors.seen)[1],
            "seconds_per_query": float(timed_queries.seconds.mean()),
            "dimensions": int(timed_queries.vectors.rows.shape[1]),
            "max_tokens": self.policy.input_tokens(self.encoder),
        }


def read_of(seen: np.ndarray) -> tuple[float | None, int | None]:
    """Return the mean of `DocumentVectors.seen`, and how many texts were cut; (None, None) if that is not known."""
    return (float(seen.mean()), int((seen < 1).sum())) if np.isfinite(seen).all() else (None, None)


def _chars(texts: list[str]) -> int:
    return sum(map(len, texts))


class Bm25Index:
    """BM25 over the documents of a task, with the defaults of bm25s: Lucene's variant, k1=1.5, b=0.75.

    English stop words are left out. No word is stemmed.
    """

    def __init__(self, task: RetrievalTask):
        import bm25s  # slow to import

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # the import sets it to DEBUG
        self._tokenize = bm25s.tokenize
        tokens = bm25s.tokenize(list(task.documents.values()), stopwords="en", show_progress=False)
        if not any(tokens.ids):
            raise ValueError(f"no document of task {task.name!r} has a word to index; check its passages")
        self.vocabulary, self.index = tokens.vocab, bm25s.BM25()
        self.index.index(tokens, show_progress=False)
        self.zeros = np.zeros(len(task.documents), dtype=np.float32)  # the scores of a query without a known word

    def scores(self, queries: list[str]) -> np.ndarray:
        """Return every query's score of each document, (Q, D) float32, documents in the task's order."""
        tokens = self._tokenize(queries, stopwords="en", return_ids=False, show_progress=False)
        known = [[token for token in query if token in self.vocabulary] for query in tokens]
        return np.stack([self.index.get_scores(query) if query else self.zeros for query in known])


class Bm25Ranker:
    """Rank with a `Bm25Index`."""

    def rank(self, task: RetrievalTask) -> Run:
        """Rank the documents that share a word with the query.

        The other documents stay out, because a fusion by rank would add to the score of every ranked document.
        """
        index, pids, texts = Bm25Index(task), list(task.documents), list(task.queries.values())
        search = ExactSearch(pids, len(texts))
        step = max(1, SCORES_AT_ONCE // len(pids))
        for first in range(0, len(texts), step):
            search.add_scores(pids, index.scores(texts[first : first + step]), first)
        found = search.run(list(task.queries))
        return {qid: {pid: score for pid, score in scores.items() if score > 0} for qid, scores in found.items()}


def rank_tfidf(task: RetrievalTask, width: int, seeds: int) -> Iterator[Run]:
    """Yield one ranking per seed, by TF-IDF vectors that a Gaussian random matrix projects to `width` dimensions.

    It shows what word counts alone achieve in as many dimensions as a model has. A text without a known word becomes
    the zero vector.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    pids = list(task.documents)
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    documents = vectorizer.fit_transform(task.documents.values()).astype(np.float32)
    queries = vectorizer.transform(task.queries.values()).astype(np.float32)
    for seed in range(seeds):
        matrix = np.random.default_rng(seed).standard_normal((documents.shape[1], width), dtype=np.float32)
        query_rows, rows = (
            normalize(tfidf @ matrix / np.float32(width**0.5)).astype(np.float32) for tfidf in (queries, documents)
        )
        search = ExactSearch(pids, len(query_rows))
        search.add_vectors(query_rows, pids, rows, np.ones(len(pids), dtype=np.int64))
        yield search.run(list(task.queries))
