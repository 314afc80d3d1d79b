"""Bootstrap intervals over queries, differences between systems, and tables of them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from m2bert.terminal import shown

RESAMPLES = 10_000
DRAWN_AT_ONCE = 2**20  # queries drawn at a time: 8 MiB, however many queries and resamples
# One of two equal systems wins all of n queries with probability 2 ** (1 - n): below six queries that is more than 5 %,
# whatever a bootstrap over so few says.
FEWEST_QUERIES = 6


def mean_interval(scores: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `scores` (n,), n > 0: percentile bootstrap over queries.

    Source: Efron and Tibshirani, 1993. scipy.stats.bootstrap draws the same samples; its bounds differ by rounding.
    """
    scores = np.asarray(scores, dtype=np.float64)  # (n,)
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
    """Return the mean of `scores - other_scores` per query, with its 95 % interval: (mean, low, high)."""
    if scores.keys() != other_scores.keys():
        odd = sorted(scores.keys() ^ other_scores.keys())
        raise ValueError(f"{len(odd)} queries are in one system only, as {odd[0]!r}; score both on one task")
    differences = np.array([scores[qid] - other_scores[qid] for qid in sorted(scores)])  # (n,)
    return float(differences.mean()), *mean_interval(differences, seed)


def by_task(records: Iterable[dict]) -> dict[tuple[str, str, str], list[dict]]:
    """Group retrieval records by their data: {(task, split, fingerprint): records}. Only these may be compared."""
    groups = defaultdict(list)
    for record in records:
        if record.get("kind") == "retrieval":
            groups[record["task"], record["split"], record["data_fingerprint"]].append(record)
    return dict(groups)


def differences(records: list[dict], against: str | None = None) -> list[dict]:
    """Return nDCG@10 of every system minus that of `against`, or of every other, on the same queries of one task.

    Returns:
        Rows {"system", "other", "difference", "interval_95", "beyond_chance"}, scores from 0 to 1. The last is true if
        the interval excludes zero, with at least FEWEST_QUERIES queries. A later system of the same name with other
        scores is called "NAME #2".
    """
    systems: dict[str, dict[str, float]] = {}
    for record in records:
        name, number = record["system"], 1
        while systems.get(name, record["query_scores"]) != record["query_scores"]:
            number += 1
            name = f"{record['system']} #{number}"
        systems[name] = record["query_scores"]
    if against is not None and against not in systems:
        raise ValueError(f"system {against!r} has no scores here; there are: {', '.join(systems)}")
    rows = []
    for position, (system, scores) in enumerate(systems.items()):
        for other in [against] if against else list(systems)[:position]:
            if other != system:
                difference, low, high = paired_difference_interval(scores, systems[other])
                beyond = len(scores) >= FEWEST_QUERIES and (low > 0 or high < 0)
                row = {"system": system, "other": other, "difference": difference, "interval_95": [low, high]}
                rows.append({**row, "beyond_chance": beyond})
    return rows


def align(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of equally wide columns: the first to the left, the others to the right. Cells are `shown`."""
    table = [[shown(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in table
    ]
    return "\n".join(map("  ".join, lines))


def points(value: float | None, decimals: int = 1) -> str:
    """Return a fraction as points (x 100), or a dash."""
    return "-" if value is None else f"{100 * value:.{decimals}f}"
