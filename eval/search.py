"""Rankings in trec_eval's order: exact search, hybrids of two rankings, and their scores."""

import math

import numpy as np

Run = dict[str, dict[str, float]]  # {qid: {pid: score}}, higher is better, at most DEPTH documents a query

DEPTH = 1_000  # documents kept for each query
SCORES_AT_ONCE = 2**22  # queries times vectors scored together: 16 MiB
METRICS = {"ndcg_at_1": "ndcg_cut_1", "ndcg_at_10": "ndcg_cut_10", "recall_at_100": "recall_100"}  # to pytrec_eval's
METRICS_DEPTH = 100  # documents of a query that decide METRICS
HIGHEST_GRADE = 1_000_000  # trec_eval keeps a table of all grades, and reads a grade of 2**32 as 0
WEIGHT_STEPS = 20  # weights of a hybrid are tried at 0, 0.05, ..., 1


class ExactSearch:
    """Keep the best documents of every query, over blocks of documents that need not fit in memory together."""

    def __init__(self, pids: list[str], queries: int):  # ids of all documents, each to be added once
        self.pids = sorted(pids, reverse=True)
        self.places = {pid: place for place, pid in enumerate(self.pids)}  # by descending id
        nothing = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
        self.best = [nothing] * queries  # of each query the scores and places of the best documents, best first

    def add_vectors(self, queries: np.ndarray, pids: list[str], rows: np.ndarray, counts: np.ndarray) -> None:
        """Score documents against queries (Q, d) by the best of their `counts` (D,) consecutive `rows` (N, d)."""
        firsts = np.cumsum(counts) - counts
        step = max(1, SCORES_AT_ONCE // len(rows))
        for first in range(0, len(queries), step):
            scores = queries[first : first + step] @ rows.T
            self.add_scores(pids, np.maximum.reduceat(scores, firsts, axis=1), first)

    def add_scores(self, pids: list[str], scores: np.ndarray, first: int = 0) -> None:
        """Add scores (q, D) float32 of queries number first, first + 1, ... against documents `pids`."""
        places = np.array([self.places[pid] for pid in pids], dtype=np.int64)
        for query, row in enumerate(scores, first):
            known_scores, known_places = self.best[query]
            self.best[query] = _first(np.append(known_scores, row), np.append(known_places, places))

    def run(self, qids: list[str]) -> Run:
        """Return the rankings, best first, of the queries in their order."""
        return {
            qid: {self.pids[place]: score for place, score in zip(places.tolist(), scores.tolist(), strict=True)}
            for qid, (scores, places) in zip(qids, self.best, strict=True)
        }


def _first(scores: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first DEPTH of (D,) scores and places: by descending score, equal ones by ascending place."""
    if len(scores) > DEPTH:
        chosen = scores >= np.partition(scores, -DEPTH)[-DEPTH]  # sorting them all is slow
        scores, places = scores[chosen], places[chosen]
    order = np.lexsort((places, -scores))[:DEPTH]
    return scores[order], places[order]


def trec_order(scores: dict[str, float]) -> list[str]:
    """Return document ids, best first: by score as a 32-bit float, then by id, both descending, as trec_eval does."""
    rounded = np.array(list(scores.values()), dtype=np.float32).tolist()
    return [pid for _, pid in sorted(zip(rounded, scores, strict=True), reverse=True)]


def rerank_order(candidates: Run, scores: Run) -> Run:
    """Return the candidates of `scores` in the order of their scores, then the other candidates as they were.

    The others get scores that give their order and nothing else: each is 1 below the one before.
    """
    run: Run = {}
    for qid, ranked in candidates.items():
        rescored = scores.get(qid, {})
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
    """Return weight * score of `run` + (1 - weight) * score of `other`, each scaled to 0 ... 1 per query.

    Documents that a run does not rank count 0 there. So does all of a run whose scores are equal.
    """
    fused: Run = {}
    for qid in [*run, *(qid for qid in other if qid not in run)]:
        ours, theirs = _scaled(run.get(qid, {})), _scaled(other.get(qid, {}))
        scores = {pid: weight * ours.get(pid, 0.0) + (1 - weight) * theirs.get(pid, 0.0) for pid in ours | theirs}
        fused[qid] = _truncated(scores)
    return fused


def standardized_fusion(run: Run, other: Run) -> Run:
    """Return the sums of both scores, each minus its mean and divided by its standard deviation over the documents
    that a run ranks for the query (Montague and Aslam, CIKM 2001).

    A document that a run does not rank gets the lowest score of that run's. A run whose scores are equal adds nothing.
    """
    fused: Run = {}
    for qid in [*run, *(qid for qid in other if qid not in run)]:
        ours, theirs = _standardized(run.get(qid, {})), _standardized(other.get(qid, {}))
        lowest, its_lowest = (min(scores.values(), default=0.0) for scores in (ours, theirs))
        fused[qid] = _truncated({pid: ours.get(pid, lowest) + theirs.get(pid, its_lowest) for pid in ours | theirs})
    return fused


def choose_weight(run: Run, other: Run, qrels: dict[str, dict[str, int]]) -> tuple[float, float]:
    """Return the weight of `run` next to `other` that gives the best nDCG@10, and that nDCG@10.

    Choose it on development data. Of equally good weights it is the one nearest to 0.5, then the smaller.
    """
    tried = []
    for step in range(WEIGHT_STEPS + 1):
        scores = score_metrics(weighted_fusion(run, other, step / WEIGHT_STEPS), qrels)["ndcg_at_10"]
        tried.append((sum(scores.values()) / len(scores), step))
    ndcg, step = max(tried, key=lambda entry: (round(entry[0], 12), -abs(2 * entry[1] - WEIGHT_STEPS)))
    return step / WEIGHT_STEPS, ndcg


def _scaled(scores: dict[str, float]) -> dict[str, float]:
    values = np.array(list(scores.values()))
    width = np.ptp(values) if scores else 0
    if not width:
        return dict.fromkeys(scores, 0.0)
    return dict(zip(scores, ((values - values.min()) / width).tolist(), strict=True))


def _standardized(scores: dict[str, float]) -> dict[str, float]:
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
    """Return {metric: {qid: 0 to 1}} of METRICS; a query that `run` does not rank counts 0.

    The numbers are those of `ndcg_at_k`, whose module imports `evaluate`: that takes longer than most scoring.

    Raises ValueError if a score is NaN or a grade is higher than HIGHEST_GRADE.
    """
    import pytrec_eval

    unclear = [qid for qid, scores in run.items() if any(map(math.isnan, scores.values()))]
    steep = [qid for qid, judged in qrels.items() if max(judged.values(), default=0) > HIGHEST_GRADE]
    if unclear or steep:
        problem = "a score that is NaN" if unclear else f"a grade above {HIGHEST_GRADE:,}"
        raise ValueError(f"query {(unclear or steep)[0]!r} has {problem}")
    grades = {qid: {pid: max(0, grade) for pid, grade in judged.items()} for qid, judged in qrels.items()}
    evaluator = pytrec_eval.RelevanceEvaluator(grades, {"ndcg_cut.1,10", "recall.100"})
    found = evaluator.evaluate({qid: scores for qid, scores in run.items() if scores})
    return {name: {qid: found.get(qid, {}).get(key, 0.0) for qid in qrels} for name, key in METRICS.items()}
