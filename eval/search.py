"""Exact search over documents that come in blocks, in trec_eval's order."""

import numpy as np

from .tasks.schema import RetrievalTask

Run = dict[str, dict[str, float]]  # {qid: {pid: score}}, higher is better, at most DEPTH documents a query

DEPTH = 1_000  # documents kept for each query
SCORES_AT_ONCE = 2**22  # queries times vectors scored together: 16 MiB
NOTHING = np.iinfo(np.int64).min  # below the key of any score


class ExactSearch:
    """The best documents of every query, over blocks of documents that need not fit in memory together.

    A document that scores s and whose id is the r-th in ascending order has the key (s, r): 32 bits each, those of s
    so mapped that they order as integers. The largest keys are exactly the first documents in trec_eval's order (equal
    scores by descending id), and all there is to remember.

    Args:
        pids: ids of all documents; each is to be added once.
        queries: number of queries.
    """

    def __init__(self, pids: list[str], queries: int):
        self.sorted_pids = sorted(pids)
        self.places = {pid: place for place, pid in enumerate(self.sorted_pids)}
        self.keys = np.full((queries, min(DEPTH, len(pids))), NOTHING)  # (Q, kept)

    def add_vectors(self, queries: np.ndarray, pids: list[str], rows: np.ndarray, counts: np.ndarray) -> None:
        """Score documents by the best of their vectors.

        Args:
            queries: (Q, d) float32.
            rows: (N, d) float32, a document's rows consecutive. counts: (D,), rows of each of `pids`.
        """
        firsts = np.cumsum(counts) - counts
        step = max(1, SCORES_AT_ONCE // len(rows))
        for first in range(0, len(queries), step):
            scores = queries[first : first + step] @ rows.T
            self.add_scores(pids, np.maximum.reduceat(scores, firsts, axis=1), first)

    def add_scores(self, pids: list[str], scores: np.ndarray, first: int = 0) -> None:
        """Take note of scores (q, D) float32 of queries number first, first + 1, ... against documents `pids`."""
        block = slice(first, first + len(scores))
        places = np.array([self.places[pid] for pid in pids], dtype=np.int64)
        keys = np.concatenate([self.keys[block], _ordered(scores) << 32 | places], axis=1)
        kept = self.keys.shape[1]
        self.keys[block] = np.partition(keys, keys.shape[1] - kept, axis=1)[:, -kept:]

    def run(self, qids: list[str]) -> Run:
        """Return the rankings, best first, of the queries in their order."""
        keys = np.sort(self.keys, axis=1)[:, ::-1]
        scores, places = _scores(keys >> 32), keys & 0xFFFFFFFF
        return {
            qid: {self.sorted_pids[place]: score for place, score in zip(*rows, strict=True)}
            for qid, *rows in zip(qids, places.tolist(), scores.tolist(), strict=True)
        }


def rank_vectors(task: RetrievalTask, queries: np.ndarray, documents: np.ndarray) -> Run:
    """Return the ranking by unit rows in the task's order: queries (Q, d), documents (D, d), float32.

    Raises:
        ValueError: a vector is not finite; the error names its text.
    """
    check_finite(list(task.queries), queries)
    check_finite(list(task.documents), documents)
    pids = list(task.documents)
    search = ExactSearch(pids, len(queries))
    search.add_vectors(queries, pids, documents, np.ones(len(pids), dtype=np.int64))
    return search.run(list(task.queries))


def check_finite(ids: list[str], vectors: np.ndarray) -> None:
    """Refuse NaN and infinity: no order could hold them.

    Args:
        ids: the text of each row of `vectors`.

    Raises:
        ValueError: naming the first text whose vector is not finite.
    """
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise ValueError(
            f"the vector of {ids[bad[0]]!r} is not finite ({bad.size} of {len(ids)}); the encoder is broken"
        )


def trec_order(scores: dict[str, float]) -> list[str]:
    """Return document ids, best first: by score as a 32-bit float, then by id, both descending, as trec_eval does."""
    rounded = np.array(list(scores.values()), dtype=np.float32).tolist()
    return [pid for _, pid in sorted(zip(rounded, scores, strict=True), reverse=True)]


def _ordered(scores: np.ndarray) -> np.ndarray:
    """Return int64 in the range of 32 bits, in the order of the float32 `scores`; both zeros are one."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.int32)  # -0.0 + 0.0 is 0.0
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64)


def _scores(ordered: np.ndarray) -> np.ndarray:
    """Return the float32 scores that `_ordered` mapped."""
    bits = ordered.astype(np.int32)
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).view(np.float32)
