"""Scores of rankings, through the same code as the `evaluate` module in metrics/ndcg."""

import pytrec_eval

from .metrics.ndcg.ndcg import ndcg_at_k

METRICS = ("ndcg_at_1", "ndcg_at_10", "recall_at_100")


def score_ranking(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], k: int = 10) -> dict[str, float]:
    """Return nDCG@k (0 to 1) of each query of `qrels`; see `ndcg_at_k` for the definition and the errors."""
    return ndcg_at_k(run, qrels, k)


def score_metrics(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]]) -> dict[str, dict[str, float]]:
    """Return {metric: {qid: 0 to 1}} of METRICS; a query that `run` does not rank counts as 0 in all of them."""
    recall = pytrec_eval.RelevanceEvaluator(qrels, {"recall.100"}).evaluate(
        {qid: scores for qid, scores in run.items() if scores}
    )
    return {
        "ndcg_at_1": ndcg_at_k(run, qrels, 1),
        "ndcg_at_10": ndcg_at_k(run, qrels, 10),
        "recall_at_100": {qid: recall.get(qid, {}).get("recall_100", 0.0) for qid in qrels},
    }
