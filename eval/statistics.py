"""Bootstrap intervals over queries, differences between systems, and tables of them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from m2bert.terminal import shown

RESAMPLES = 10_000
DRAWN_AT_ONCE = 2**17  # queries drawn at a time: 1 MiB, which stays in a processor's cache
# One of two equal systems wins all of n queries with probability 2 ** (1 - n): below six queries that is more than 5 %,
# whatever a bootstrap over so few says.
FEWEST_QUERIES = 6


def mean_interval(scores: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `scores` (n,), n > 0: percentile bootstrap over queries.

    Source: Efron and Tibshirani, 1993. scipy.stats.bootstrap draws the same samples; its bounds differ by rounding.
    """
    return mean_intervals([scores], seed)[0]


def mean_intervals(rows: Sequence[Sequence[float]] | np.ndarray, seed: int = 0) -> list[tuple[float, float]]:
    """Return the `mean_interval` of each of `rows` (m, n), all of them from the same samples of the n queries."""
    return _bounds(resampled_means(np.asarray(rows, dtype=np.float64), np.random.default_rng(seed)))


def resampled_means(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the means (m, RESAMPLES) of `rows` (m, n) over samples of their columns, drawn with replacement."""
    size = rows.shape[1]
    step = max(1, DRAWN_AT_ONCE // size)
    means = np.empty((len(rows), RESAMPLES))
    for first in range(0, RESAMPLES, step):
        drawn = generator.integers(size, size=(min(step, RESAMPLES - first), size))
        for row, found in zip(rows, means, strict=True):
            found[first : first + step] = row[drawn].mean(axis=1)
    return means


def _bounds(means: np.ndarray) -> list[tuple[float, float]]:
    return [(float(low), float(high)) for low, high in np.percentile(means, (2.5, 97.5), axis=1).T]


def paired_difference_interval(
    scores: dict[str, float], other_scores: dict[str, float], seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean of `scores - other_scores` per query, with its 95 % interval: (mean, low, high)."""
    found = _paired_differences(scores, other_scores)
    return float(found.mean()), *mean_interval(found, seed)


def _paired_differences(scores: dict[str, float], other_scores: dict[str, float]) -> np.ndarray:
    """Return `scores - other_scores` (n,) by the order of query ids. Raises ValueError if the queries differ."""
    if scores.keys() != other_scores.keys():
        odd = sorted(scores.keys() ^ other_scores.keys())
        raise ValueError(f"{len(odd)} queries are in one system only, as {odd[0]!r}; score both on one task")
    return np.array([scores[qid] - other_scores[qid] for qid in sorted(scores)])


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
    pairs = [
        (system, other)
        for position, system in enumerate(systems)
        for other in ([against] if against else list(systems)[:position])
        if other != system
    ]
    found = [_paired_differences(systems[system], systems[other]) for system, other in pairs]
    rows = []
    for (system, other), each, bounds in zip(pairs, found, mean_intervals(found) if found else [], strict=True):
        row = {"system": system, "other": other, "difference": float(each.mean()), "interval_95": list(bounds)}
        rows.append({**row, "beyond_chance": beyond_chance(bounds, len(each))})
    return rows


def beyond_chance(bounds: Sequence[float], queries: int) -> bool:
    """Return whether the interval of a difference excludes zero, over FEWEST_QUERIES queries or more."""
    return queries >= FEWEST_QUERIES and (bounds[0] > 0 or bounds[1] < 0)


class OverTasks(NamedTuple):
    """A system's mean over tasks, its difference to the first system, and the 95 % intervals of both."""

    mean: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]


def mean_over_tasks(tasks: list[list[dict[str, float]]], seed: int = 0) -> list[OverTasks]:
    """Return what each system reaches on average over tasks, which all count the same.

    The intervals are of a bootstrap that resamples the queries within each task, for all systems alike.

    Args:
        tasks: of each task {qid: score} of every system, in one order of systems.
    """
    generator = np.random.default_rng(seed)
    means, resampled = 0.0, 0.0
    for systems in tasks:
        qids = sorted(systems[0])
        rows = np.array([[scores[qid] for qid in qids] for scores in systems])  # (m, n)
        means = means + rows.mean(axis=1) / len(tasks)
        resampled = resampled + resampled_means(rows, generator) / len(tasks)
    found = zip(means, _bounds(resampled), means - means[0], _bounds(resampled - resampled[0]), strict=True)
    return [OverTasks(float(mean), bounds, float(gap), gap_bounds) for mean, bounds, gap, gap_bounds in found]


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
