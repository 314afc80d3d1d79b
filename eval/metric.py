"""Scores of rankings, through the same code as the `evaluate` module in metrics/ndcg."""

from .metrics.ndcg.ndcg import ndcg_at_k


def score_ranking(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], k: int = 10) -> dict[str, float]:
    """nDCG@k (0 to 1) of each query of `qrels`; see `ndcg_at_k` for the definition and the errors."""
    return ndcg_at_k(run, qrels, k)
