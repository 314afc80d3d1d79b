"""nDCG@10 of a group of queries: of one document length, one quarter of the document, one place of the needle."""

from ..intervals import mean_interval


def summarise(scores: list[float]) -> dict:
    """{"queries", "ndcg_at_10", "interval_95"} of scores from 0 to 1.

    No queries have no mean, and one query has no interval: both are None then.
    """
    return {
        "queries": len(scores),
        "ndcg_at_10": sum(scores) / len(scores) if scores else None,
        "interval_95": list(mean_interval(scores)) if len(scores) > 1 else None,
    }
