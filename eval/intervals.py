"""Bootstrap confidence intervals over queries (Efron and Tibshirani, 1993, percentile method)."""

import numpy as np

RESAMPLES = 10_000
DRAWN_AT_ONCE = 2**20  # queries drawn at a time: 8 MiB, however many queries and resamples


def mean_interval(scores: list[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of `scores` (n,), queries drawn with replacement.

    Raises:
        ValueError: there are no scores.
    """
    scores = np.asarray(scores, dtype=np.float64)  # (n,)
    if scores.size == 0:
        raise ValueError("scores is empty; an interval needs at least one query")
    generator = np.random.default_rng(seed)
    step = max(1, DRAWN_AT_ONCE // scores.size)
    means = [
        scores[generator.integers(scores.size, size=(min(step, RESAMPLES - first), scores.size))].mean(axis=1)
        for first in range(0, RESAMPLES, step)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def paired_difference_interval(
    scores: dict[str, float], other_scores: dict[str, float], seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `scores - other_scores` over the queries both have, with its 95 % interval: (mean, low, high).

    Raises:
        ValueError: the two were not measured on the same queries.
    """
    if scores.keys() != other_scores.keys():
        odd = sorted(scores.keys() ^ other_scores.keys())
        raise ValueError(f"{len(odd)} queries are in one system only, as {odd[0]!r}; score both on one task")
    differences = np.array([scores[qid] - other_scores[qid] for qid in sorted(scores)])  # (n,)
    return float(differences.mean()), *mean_interval(differences, seed)
