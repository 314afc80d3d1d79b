"""Hybrids: one ranking from those of two systems."""

import numpy as np

from .search import DEPTH, Run, trec_order

STEPS = 20  # weights are tried at 0, 0.05, ..., 1


def rerank_order(candidates: Run, scores: Run) -> Run:
    """Return the candidates of `scores` in the order of their scores, then the other candidates as they were.

    Only the order of what follows is told by its scores: each is 1 below the one before.
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

    A document that a run does not rank gets nothing from it.
    """
    fused: Run = {}
    for run in runs:
        for qid, scores in run.items():
            total = fused.setdefault(qid, {})
            for rank, pid in enumerate(trec_order(scores), start=1):
                total[pid] = total.get(pid, 0.0) + 1 / (k + rank)
    return {qid: _best(scores) for qid, scores in fused.items()}


def weighted_fusion(run: Run, other: Run, weight: float) -> Run:
    """Return weight * score of `run` + (1 - weight) * score of `other`, each scaled to 0 ... 1 within the query.

    A document that a run does not rank counts 0 there, and so does all of a run whose scores are equal: it says
    nothing about the query.

    Raises:
        ValueError: weight is not within 0 and 1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight} is no share; it must be between 0 and 1")
    fused: Run = {}
    for qid in [*run, *(qid for qid in other if qid not in run)]:
        ours, theirs = _scaled(run.get(qid, {})), _scaled(other.get(qid, {}))
        pids = ours | theirs
        fused[qid] = _best({pid: weight * ours.get(pid, 0.0) + (1 - weight) * theirs.get(pid, 0.0) for pid in pids})
    return fused


def choose_weight(run: Run, other: Run, qrels: dict[str, dict[str, int]]) -> tuple[float, float]:
    """The weight of `run` beside `other` that gives the best nDCG@10, and that nDCG@10.

    To be chosen on development data. Of equally good weights the one nearest to 0.5, then the smaller.
    """
    from .metric import score_ranking  # slow to import

    tried = []
    for step in range(STEPS + 1):
        scores = score_ranking(weighted_fusion(run, other, step / STEPS), qrels)
        tried.append((sum(scores.values()) / len(scores), step))
    ndcg, step = max(tried, key=lambda entry: (round(entry[0], 12), -abs(2 * entry[1] - STEPS)))
    return step / STEPS, ndcg


def _scaled(scores: dict[str, float]) -> dict[str, float]:
    values = np.array(list(scores.values()))
    width = np.ptp(values) if scores else 0
    if not width:
        return dict.fromkeys(scores, 0.0)
    return dict(zip(scores, ((values - values.min()) / width).tolist(), strict=True))


def _best(scores: dict[str, float]) -> dict[str, float]:
    """Return the first DEPTH documents, best first."""
    return {pid: scores[pid] for pid in trec_order(scores)[:DEPTH]}
