"""What the performance page derives from records: crossover lengths, and the largest length that fits in memory."""

import math
from collections import defaultdict

from modeling_m2bert.m2bert_ops_filter import DEFAULT_LIMIT_BYTES

Record = dict
CAPACITIES_GB = (8, 24, 80)
LARGEST_DEVIATION = 0.15  # of a measured peak from its straight line, above which no length is derived from it


def series(records: list[Record], device: str, mode: str) -> dict[tuple[str, str], dict[int, Record]]:
    """Newest whole-model records of one row per batch, by (arm, dtype) and length."""
    found = defaultdict(dict)
    for record in records:
        if (record["device"], record["mode"], record["batch"]) == (device, mode, 1) and "op" not in record:
            found[record["arm"], record["dtype"]][record["length"]] = record
    return {key: dict(sorted(lengths.items())) for key, lengths in found.items()}


def crossover(ours: dict[int, Record], other: dict[int, Record]) -> str:
    """From which length on `ours` is faster, interpolated linearly in logarithms of length and time."""
    lengths = [length for length in ours if length in other]
    gains = [math.log(other[length]["seconds"] / ours[length]["seconds"]) for length in lengths]
    if not lengths:
        return "no common length"
    slower = [i for i, gain in enumerate(gains) if gain <= 0]
    if not slower:
        return "ours is faster at every length measured"
    last = slower[-1]
    if last == len(lengths) - 1:
        return "ours is not faster at the longest length measured"
    low, high = math.log(lengths[last]), math.log(lengths[last + 1])
    share = -gains[last] / (gains[last + 1] - gains[last])
    return f"{round(math.exp(low + share * (high - low)))} tokens"


def largest_lengths(lengths: dict[int, Record]) -> list[int] | str:
    """Largest length for each of CAPACITIES_GB, from a line through (length, weights + peak); room is left for all that
    the filter cache may hold.

    Returns:
        One number of tokens per capacity, 0 where not even the weights fit; or why there are none.
    """
    points = {
        length: record["weight_bytes"] + record["peak_bytes"]
        for length, record in lengths.items()
        if record["peak_bytes"] is not None
    }
    if len(points) < 3:
        return "not measured at three lengths"
    intercept, slope = _line(points)
    deviation = max(abs(intercept + slope * length - total) / total for length, total in points.items())
    if deviation > LARGEST_DEVIATION or slope <= 0:
        return f"not linear in length (up to {deviation:.0%} off)"
    reserved = DEFAULT_LIMIT_BYTES if any(record["cache_bytes"] for record in lengths.values()) else 0
    return [max(0, int((capacity * 1e9 - reserved - intercept) / slope)) for capacity in CAPACITIES_GB]


def _line(points: dict[int, float]) -> tuple[float, float]:
    """Least-squares intercept and slope, errors relative to the values."""
    weights = {x: 1 / y**2 for x, y in points.items()}
    total = sum(weights.values())
    mean_x = sum(weights[x] * x for x in points) / total
    mean_y = sum(weights[x] * y for x, y in points.items()) / total
    covariance = sum(weights[x] * (x - mean_x) * (y - mean_y) for x, y in points.items())
    slope = covariance / sum(weights[x] * (x - mean_x) ** 2 for x in points)
    return mean_y - slope * mean_x, slope
