"""Rankings in trec_eval's order: exact search, fusion of rankings, and their metrics."""

import math

import numpy as np

Run = dict[str, dict[str, float]]  # {qid: {pid: score}}, higher is better, at most DEPTH documents a query

DEPTH = 1_000  # documents kept for each query
SCORES_AT_ONCE = 2**22  # scores computed together (queries times vectors): 16 MiB of float32
# {name of a metric here: its name in pytrec_eval}
METRICS = {"ndcg_at_1": "ndcg_cut_1", "ndcg_at_10": "ndcg_cut_10", "recall_at_100": "recall_100"}
METRICS_DEPTH = 100  # METRICS depend only on the first METRICS_DEPTH documents of a query
# Higher grades are refused: trec_eval keeps a table of all grades, and reads a grade of 2**32 as 0.
HIGHEST_GRADE = 1_000_000
WEIGHT_STEPS = 20  # choose_weight tries the weights 0, 0.05, ..., 1


class ExactSearch:
    """Keep the best documents of every query, over blocks of documents that need not fit in memory together.

    Args:
        pids: ids of all documents. Each document is to be added once.
        query_count: number of queries.
    """

    def __init__(self, pids: list[str], query_count: int):
        self.pids = sorted(pids, reverse=True)  # trec_eval's order of equal scores
        # A document's place is its position in self.pids. The smaller place ranks first among equal scores.
        self.places = {pid: place for place, pid in enumerate(self.pids)}
        empty = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
        self.best = [empty] * query_count  # scores and places of each query's best documents, best first

    def add_vectors(self, queries: np.ndarray, pids: list[str], rows: np.ndarray, counts: np.ndarray) -> None:
        """Score documents against all queries. The score of a document is that of its best vector.

        Args:
            queries: (Q, d), a vector for each query.
            pids: ids of D documents.
            rows: (N, d), the vectors of the documents, in the order of `pids`. Those of one document are consecutive.
            counts: (D,), the number of vectors of each document, at least 1.
        """
        firsts = np.cumsum(counts) - counts
        step = max(1, SCORES_AT_ONCE // len(rows))
        for first in range(0, len(queries), step):
            scores = queries[first : first + step] @ rows.T
            self.add_scores(pids, np.maximum.reduceat(scores, firsts, axis=1), first)

    def add_scores(self, pids: list[str], scores: np.ndarray, first: int = 0) -> None:
        """Add scores of documents for consecutive queries.

        Args:
            pids: ids of D documents.
            scores: (q, D) float32, a row for each of q queries.
            first: index of the query of row 0. Row 1 belongs to the next query, and so on.
        """
        places = np.array([self.places[pid] for pid in pids], dtype=np.int64)
        for query, row in enumerate(scores, first):
            known_scores, known_places = self.best[query]
            self.best[query] = _best(np.append(known_scores, row), np.append(known_places, places))

    def run(self, qids: list[str]) -> Run:
        """Return the ranking of each query, best first. `qids[i]` is the id of the query with index i."""
        return {
            qid: {self.pids[place]: score for place, score in zip(places.tolist(), scores.tolist(), strict=True)}
            for qid, (scores, places) in zip(qids, self.best, strict=True)
        }


def _best(scores: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best DEPTH of (D,) scores and their places, by descending score, equal scores by ascending place."""
    if len(scores) > DEPTH:
        # This is faster than sorting all scores. It keeps every score that equals the lowest of the best DEPTH.
        chosen = scores >= np.partition(scores, -DEPTH)[-DEPTH]
        scores, places = scores[chosen], places[chosen]
    order = np.lexsort((places, -scores))[:DEPTH]
    return scores[order], places[order]


def trec_order(scores: dict[str, float]) -> list[str]:
    """Return document ids, best first: by score as a 32-bit float, then by id, both descending, as trec_eval does."""
    rounded = np.array(list(scores.values()), dtype=np.float32).tolist()
    return [pid for _, pid in sorted(zip(rounded, scores, strict=True), reverse=True)]


def rerank_order(candidates: Run, scores: Run) -> Run:
    """Order the candidates by their new `scores`, and put those without a new score last, in their old order.

    Documents that are no candidates are left out.

    The candidates without a new score get scores that only express this order. The first is 1 below the lowest new
    score (below 0 if there is none), and each further one is 1 below the one before.
    """
    run: Run = {}
    for qid, ranked in candidates.items():
        rescored = {pid: score for pid, score in scores.get(qid, {}).items() if pid in ranked}
        rest = [pid for pid in trec_order(ranked) if pid not in rescored]
        lowest = min(rescored.values(), default=0.0)
        run[qid] = rescored | {pid: lowest - place for place, pid in enumerate(rest, start=1)}
    return run


def reciprocal_rank_fusion(runs: list[Run], k: int = 60) -> Run:
    """Return the sums over the runs of 1 / (k + rank), rank 1 for the best (Cormack et al., SIGIR 2009).

    A run adds nothing to documents that it does not rank.
    """
    fused: Run = {}
    for run in runs:
        for qid, scores in run.items():
            total = fused.setdefault(qid, {})
            for rank, pid in enumerate(trec_order(scores), start=1):
                total[pid] = total.get(pid, 0.0) + 1 / (k + rank)
    return {qid: _truncated(scores) for qid, scores in fused.items()}


def weighted_fusion(run: Run, other: Run, weight: float) -> Run:
    """Return weight * scaled score of `run` + (1 - weight) * scaled score of `other`.

    The scores of each run are scaled to 0 ... 1 for each query, before they are weighted. A document that a run
    does not rank has the scaled score 0 there. If all scores of a run are equal for a query, all its scaled scores
    are 0.
    """
    fused: Run = {}
    for qid in [*run, *(qid for qid in other if qid not in run)]:
        ours, theirs = _scaled(run.get(qid, {})), _scaled(other.get(qid, {}))
        scores = {pid: weight * ours.get(pid, 0.0) + (1 - weight) * theirs.get(pid, 0.0) for pid in ours | theirs}
        fused[qid] = _truncated(scores)
    return fused


def standardized_fusion(run: Run, other: Run) -> Run:
    """Return the sums of both runs' standardized scores (Montague and Aslam, CIKM 2001).

    The scores that a run gives for a query are standardized together: their mean is subtracted from each, and the
    difference is divided by the standard deviation of these scores. A document that a run does not rank gets the
    lowest standardized score of that run. If all scores of a run are equal for a query, all its standardized scores
    are 0.
    """
    fused: Run = {}
    for qid in [*run, *(qid for qid in other if qid not in run)]:
        ours, theirs = _standardized(run.get(qid, {})), _standardized(other.get(qid, {}))
        our_lowest, their_lowest = (min(scores.values(), default=0.0) for scores in (ours, theirs))
        sums = {pid: ours.get(pid, our_lowest) + theirs.get(pid, their_lowest) for pid in ours | theirs}
        fused[qid] = _truncated(sums)
    return fused


def choose_weight(run: Run, other: Run, qrels: dict[str, dict[str, int]]) -> tuple[float, float]:
    """Return the weight of `run` in `weighted_fusion` that gives the best nDCG@10, and that nDCG@10.

    The runs and `qrels` must be of development data. Of equally good weights, the one nearest to 0.5 is returned; of
    two that are equally near, the smaller.
    """
    tried = []
    for step in range(WEIGHT_STEPS + 1):
        scores = score_metrics(weighted_fusion(run, other, step / WEIGHT_STEPS), qrels)["ndcg_at_10"]
        tried.append((sum(scores.values()) / len(scores), step))
    # Means that differ by rounding errors alone count as equal. The step nearest to WEIGHT_STEPS / 2 is the weight
    # nearest to 0.5, and `max` returns the first of two equal entries.
    ndcg, step = max(tried, key=lambda entry: (round(entry[0], 12), -abs(2 * entry[1] - WEIGHT_STEPS)))
    return step / WEIGHT_STEPS, ndcg


def _scaled(scores: dict[str, float]) -> dict[str, float]:
    """Return the scores scaled to 0 ... 1; 0 if all are equal."""
    values = np.array(list(scores.values()))
    if not scores or not np.ptp(values):
        return dict.fromkeys(scores, 0.0)
    return dict(zip(scores, ((values - values.min()) / np.ptp(values)).tolist(), strict=True))


def _standardized(scores: dict[str, float]) -> dict[str, float]:
    """Return the scores minus their mean, divided by their standard deviation; 0 if all are equal."""
    values = np.array(list(scores.values()))
    if not scores or not np.ptp(values):
        return dict.fromkeys(scores, 0.0)
    return dict(zip(scores, ((values - values.mean()) / values.std()).tolist(), strict=True))


def _truncated(scores: dict[str, float]) -> dict[str, float]:
    """Return the first DEPTH documents, best first."""
    return {pid: scores[pid] for pid in trec_order(scores)[:DEPTH]}


def score_ranking(run: Run, qrels: dict[str, dict[str, int]], k: int = 10) -> dict[str, float]:
    """Return nDCG@k (0 to 1) of each query of `qrels`; see `ndcg_at_k`."""
    from .metrics.ndcg.ndcg import ndcg_at_k  # slow to import

    return ndcg_at_k(run, qrels, k)


def score_metrics(run: Run, qrels: dict[str, dict[str, int]]) -> dict[str, dict[str, float]]:
    """Return {metric: {qid: value from 0 to 1}} for each metric of METRICS.

    A query that `run` does not rank has 0. A negative grade counts as 0.

    The nDCG values are those of `ndcg_at_k`. This function does not call `ndcg_at_k`, because importing its module
    takes longer than most scoring: the module imports `evaluate`.

    Raises ValueError if a score is NaN or a grade is higher than HIGHEST_GRADE.
    """
    import pytrec_eval

    for qid, scores in run.items():
        if any(map(math.isnan, scores.values())):
            raise ValueError(f"query {qid!r} has a score that is NaN")
    for qid, judged in qrels.items():
        if max(judged.values(), default=0) > HIGHEST_GRADE:
            raise ValueError(f"query {qid!r} has a grade above {HIGHEST_GRADE:,}")
    grades = {qid: {pid: max(0, grade) for pid, grade in judged.items()} for qid, judged in qrels.items()}
    evaluator = pytrec_eval.RelevanceEvaluator(grades, {"ndcg_cut.1,10", "recall.100"})
    found = evaluator.evaluate({qid: scores for qid, scores in run.items() if scores})
    return {name: {qid: found.get(qid, {}).get(key, 0.0) for qid in qrels} for name, key in METRICS.items()}
