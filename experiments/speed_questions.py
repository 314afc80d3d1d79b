"""The questions of docs/performance.md: what must be reached, and how to read it and other things off the records."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CACHE_BYTES = 3_000_000_000  # default limit of the filter cache
CAPACITIES_GB = (8, 24, 80)
LARGEST_DEVIATION = 0.15  # of a measured peak from its straight line, above which no length is derived from it

Record = dict
Answer = Callable[[list[Record]], float | None]


class Question(NamedTuple):
    """One row of the table.

    Attributes:
        must, aim: values to reach, in `unit`: x (times faster), ms, GB, or "x overhead".
        answer: returns the measured value, None where the records do not hold it.
    """

    device: str
    text: str
    must: float
    aim: float | None
    unit: str
    answer: Answer

    def reaches(self, value: float, goal: float | None) -> bool:
        return goal is not None and (value >= goal if self.unit == "x" else value <= goal)


def smallest(records: list[Record], arms: tuple[str, ...], field: str = "seconds", scale: float = 1, **wanted):
    """Return the smallest value of `field` among the newest records of the arms; None if there is none."""
    found = {}
    for record in records:
        fits = all(record.get(name) == value for name, value in ({"op": None} | wanted).items())
        if fits and record["arm"] in arms and record.get(field) is not None:
            found[record["arm"]] = scale * record[field]
    return min(found.values(), default=None)


def value(*arms: str, **wanted) -> Answer:
    return lambda records: smallest(records, arms, **wanted)


def times_faster(other: tuple[str, ...], other_dtype: str, dtype: str, **wanted) -> Answer:
    """Answer how many times faster ours is than the fastest of others: the newest run in which both were measured."""

    def answer(records):
        for run in reversed(dict.fromkeys(record["run"] for record in records)):
            theirs = smallest(records, other, dtype=other_dtype, run=run, **wanted)
            ours = smallest(records, ("ours",), dtype=dtype, run=run, **wanted)
            if theirs is not None and ours is not None:
                return theirs / ours
        return None

    return answer


def padding_overhead(dtype: str) -> Answer:
    def answer(records):
        mixed, alone = (
            smallest(records, ("ours",), dtype=dtype, device="cpu", mode=mode) for mode in ("mixed", "alone")
        )
        return None if None in (mixed, alone) else mixed / alone

    return answer


def cpu_questions() -> list[Question]:
    forward = {"device": "cpu", "mode": "forward", "batch": 1}
    rows = []
    for dtype, goals, aim in (("bfloat16", (3.5, 4, 4, 4), 5), ("float32", (1.3, 1.3, 1.3, 1.3), 1.5)):
        for length, must in zip((512, 2048, 8192, 32768), goals, strict=True):
            answer = times_faster(("original",), "float32", dtype, length=length, **forward)
            text = f"forward, {dtype}, against the original in float32, {length} tokens"
            rows.append(Question("cpu", text, must, aim, "x", answer))
    for dtype, must, aim in (("float32", 5, 8), ("bfloat16", 12, 20)):
        answer = times_faster(("modernbert-base",), dtype, dtype, length=8192, **forward)
        text = f"forward, {dtype}, against ModernBERT-base in {dtype}, 8192 tokens"
        rows.append(Question("cpu", text, must, aim, "x", answer))
    for dtype in ("float32", "bfloat16"):
        query = times_faster(("original",), "float32", dtype, device="cpu", mode="query")
        text = f"query of 32 tokens, {dtype}, against the original padding it to 32768"
        rows.append(Question("cpu", text, 300, 900, "x", query))
        text = f"texts of 64 to 1024 tokens in one padded batch against each alone, {dtype}"
        rows.append(Question("cpu", text, 1.1, None, "x overhead", padding_overhead(dtype)))
        peak = value("ours", field="peak_bytes", scale=1e-9, dtype=dtype, length=32768, **forward)
        text = f"peak memory of a forward of 32768 tokens beyond weights and cache, {dtype}"
        rows.append(Question("cpu", text, 1.5, 1, "GB", peak))
    return rows


def gpu_questions() -> list[Question]:
    half = {"device": "cuda", "dtype": "bfloat16"}
    forward, step = half | {"mode": "forward"}, half | {"mode": "training", "length": 32768, "batch": 1}
    rows = []
    for length, must, aim in ((2048, 3, 7), (8192, 2.2, 4.5), (32768, 1.6, 2.7)):
        wanted = {"device": "cuda", "mode": "forward", "op": "long_conv", "length": length}
        text = f"long convolution against torch rfft with cached filters, {length} tokens"
        rows.append(Question("cuda", text, must, aim, "x", times_faster(("plain",), "bfloat16", "bfloat16", **wanted)))
    for batch, length, floor, must, aim in ((1, 32768, "8.0", 23, 14.6), (16, 2048, "4.9", 17, 9.8)):
        text = f"forward, {batch} x {length} (floor on an H200: {floor} ms)"
        milliseconds = value("ours", "ours-graph", scale=1e3, length=length, batch=batch, **forward)
        rows.append(Question("cuda", text, must, aim, "ms", milliseconds))
    modernbert = times_faster(("modernbert-base", "modernbert-base-flash"), "bfloat16", "bfloat16", device="cuda",
                              mode="forward", length=8192, batch=1)  # fmt: skip
    rows.append(Question("cuda", "forward against ModernBERT-base, 8192 tokens", 2, 3, "x", modernbert))
    milliseconds = value("ours", "ours-graph", scale=1e3, **step)
    rows.append(Question("cuda", "training step, 1 x 32768 (floor on an H200: 24 ms)", 75, 45, "ms", milliseconds))
    text = "peak memory of that step beyond weights, without checkpointing"
    rows.append(Question("cuda", text, 20, 10, "GB", value("ours", field="peak_bytes", scale=1e-9, **step)))
    return rows


QUESTIONS = [*cpu_questions(), *gpu_questions()]


def series(records: list[Record], device: str, mode: str) -> dict[tuple[str, str], dict[int, Record]]:
    """Return the newest whole-model records of one row per batch, by (arm, dtype) and length."""
    found = defaultdict(dict)
    for record in records:
        if (record["device"], record["mode"], record["batch"]) == (device, mode, 1) and "op" not in record:
            found[record["arm"], record["dtype"]][record["length"]] = record
    return {key: dict(sorted(lengths.items())) for key, lengths in found.items()}


def crossover(ours: dict[int, Record], other: dict[int, Record]) -> str:
    """Return from which length on `ours` is faster, interpolated linearly in logarithms of length and time."""
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
    ends = slice(last, last + 2)
    return f"{round(math.exp(np.interp(0, gains[ends], np.log(lengths[ends]))))} tokens"


def largest_lengths(lengths: dict[int, Record]) -> list[int] | str:
    """Return the largest length in tokens for each of CAPACITIES_GB, or why there is none: from a line through
    (length, weights + peak), errors relative to the values, with room for all that the filter cache may hold."""
    measured = {length: record for length, record in lengths.items() if record["peak_bytes"] is not None}
    if len(measured) < 3:
        return "not measured at three lengths"
    totals = np.array([record["weight_bytes"] + record["peak_bytes"] for record in measured.values()], dtype=float)
    slope, intercept = np.polyfit([*measured], totals, 1, w=1 / totals)
    deviation = np.abs((intercept + slope * np.array([*measured]) - totals) / totals).max()
    if deviation > LARGEST_DEVIATION or slope <= 0:
        return f"not linear in length (up to {deviation:.0%} off)"
    reserved = CACHE_BYTES if any(record["cache_bytes"] for record in lengths.values()) else 0
    return [max(0, int((capacity * 1e9 - reserved - intercept) / slope)) for capacity in CAPACITIES_GB]
