"""What a record of each kind must hold before a report uses it."""

import math
from collections.abc import Callable
from typing import NamedTuple

TOLERANCE = 1e-6  # a mean of ones may be a little more than one
LONGEST_SECONDS = 1e9  # some thirty years


class Leaf(NamedTuple):
    """A value without parts: what it should be, in words, and whether one is."""

    name: str
    fits: Callable[[object], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_share(value: object) -> bool:
    return _is_number(value) and -TOLERANCE <= value <= 1 + TOLERANCE


def _are_seconds(value: object) -> bool:
    return _is_number(value) and 0 <= value < LONGEST_SECONDS


def _are_numbers(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(_is_number, value))


def _are_named(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(map(fits, value.values()))


def _is_histogram(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("counts"), list):
        return False
    counts = value["counts"]
    return bool(counts) and all(map(_is_count, counts)) and _are_numbers(value.get("edges"), len(counts) + 1)


TEXT = Leaf("text", lambda value: isinstance(value, str))
NUMBER = Leaf("a finite number", _is_number)
SHARE = Leaf("a finite number from 0 to 1", _is_share)
SECONDS = Leaf("a time in seconds", _are_seconds)
COUNT = Leaf("a count", _is_count)
INTERVAL = Leaf("two finite numbers", lambda value: _are_numbers(value, 2))
TRIPLE = Leaf("three finite numbers", lambda value: _are_numbers(value, 3))
QUARTERS = Leaf("four counts", lambda value: _are_numbers(value, 4) and all(map(_is_count, value)))
HISTOGRAM = Leaf("a histogram with one edge more than counts", _is_histogram)
COUNTS = Leaf("counts by name", lambda value: _are_named(value, _is_count))
NUMBERS = Leaf("numbers by name", lambda value: _are_named(value, _is_number))
SCORES = Leaf("at least one score by query", lambda value: bool(value) and _are_named(value, _is_number))
MEAN = {"mean": SHARE}
MEAN_OF_SOME = {"queries": COUNT, "ndcg_at_10?": SHARE, "interval_95?": INTERVAL}
EXAMPLE = {"query": TEXT, "answer_start": TEXT, "rank?": COUNT, "found_start?": TEXT}
TASK = {"task": TEXT, "split": TEXT}
ORIGIN = {"source?": TEXT, "revision?": TEXT, "data_fingerprint?": TEXT}
MEASUREMENT = {
    "system": TEXT, "encoder?": TEXT, "policy?": TEXT, "date": TEXT, "versions?": {}, "model_fingerprint?": TEXT,
    "device?": TEXT, "dtype?": TEXT, "paper_row?": TEXT,
}  # fmt: skip
OVERLAP = {
    "test": TASK, "train": TASK,
    "documents": {"count": COUNT, "same": COUNT, "near": COUNT},
    "queries": {"count": COUNT, "same": COUNT, "in_documents?": COUNT},
}  # fmt: skip
TIMES = {
    "tokens": COUNT, "encode_seconds": SECONDS, "tokenize_seconds?": SECONDS, "total_seconds?": SECONDS,
    "seen_share?": SHARE,
}  # fmt: skip
# A key that ends in "?" may be absent or null. [shape] is a list of such values, (shape,) one that is not empty.
SHAPES = {
    "retrieval": {
        **TASK, **ORIGIN, **MEASUREMENT, "data_fingerprint": TEXT, "policy": TEXT, "vectors": TEXT, "claim": TEXT,
        "ndcg_at_10": SHARE, "interval_95": INTERVAL, "query_scores": SCORES,
        "metrics?": {"ndcg_at_1?": MEAN, "recall_at_100?": MEAN},
        "counts": {"queries": COUNT, "documents": COUNT, "truncated_documents?": COUNT},
        "vectors_per_document?": NUMBER, "seen_share?": SHARE, "seconds_per_document?": SECONDS,
        "trained_on?": [TEXT], "overlap?": [OVERLAP],
        "by_length?": {"tokenizer": TEXT, "rows": ({"bucket": TEXT, **MEAN_OF_SOME},)},
        "by_quarter?": ({"quarter": COUNT, **MEAN_OF_SOME},),
        "hybrid?": {
            "method": TEXT, "depth?": COUNT, "weight?": SHARE, "development_split?": TEXT,
            "development_ndcg_at_10?": SHARE,
        },
        "failures?": [EXAMPLE], "successes?": [EXAMPLE],
    },
    "mteb": {**TASK, **ORIGIN, **MEASUREMENT, "metric": TEXT, "value": NUMBER, "other_scores?": NUMBERS},
    "needle": {
        **TASK, **ORIGIN, **MEASUREMENT, "passages": COUNT, "queries": COUNT,
        "seed?": COUNT, "seen_share?": SHARE,
        "rows": ({"position": COUNT, "ndcg_at_10": SHARE, "interval_95?": INTERVAL},),
    },
    "lengths": {
        **TASK, **ORIGIN, "data_fingerprint": TEXT, "tokenizer": TEXT,
        "queries": {"count": COUNT, "mean_chars": NUMBER, "mean_tokens": NUMBER},
        "documents": {
            "count": COUNT, "mean_chars": NUMBER, "mean_tokens": NUMBER, "median_tokens": NUMBER, "max_tokens": NUMBER,
            "histogram": HISTOGRAM,
        },
        "example": {"query": TEXT, "passage": TEXT},
    },
    "spans": {
        **TASK, **ORIGIN, "quarters": QUARTERS,
        "positions": {"count": COUNT, "quartiles": TRIPLE, "mean_document_chars": NUMBER},
    },
    "clusters": {
        **MEASUREMENT,
        "sources": COUNTS, "knn": {"k": COUNT, "accuracy": SHARE, "chance": SHARE}, "points": [TRIPLE],
    },
    "efficiency": {
        **MEASUREMENT, "device": TEXT, "threads?": COUNT,
        "rows": (TIMES,),
    },
    "overlap": OVERLAP,
}  # fmt: skip


def fault_of(record: object) -> str | None:
    """What keeps a record from being used, in words, or None."""
    kind = record.get("kind") if isinstance(record, dict) else None
    if not isinstance(kind, str) or kind not in SHAPES:
        return f"kind {kind!r} is unknown; this version reads {', '.join(SHAPES)}"
    return _mismatch(record, SHAPES[kind], "")


def _mismatch(value: object, shape: object, place: str) -> str | None:
    """The first difference between a value and the shape it should have."""
    if isinstance(shape, Leaf):
        return None if shape.fits(value) else f"{place} is {_shown(value)}, not {shape.name}"
    if isinstance(shape, list | tuple):
        if not isinstance(value, list):
            return f"{place} is {_shown(value)}, not a list"
        if not value and isinstance(shape, tuple):
            return f"{place} is empty"
        faults = (_mismatch(item, shape[0], f"{place}[{index}]") for index, item in enumerate(value))
        return next(filter(None, faults), None)
    if not isinstance(value, dict):
        return f"{place} is {_shown(value)}, not an object"
    for name, inner in shape.items():
        key = name.removesuffix("?")
        if key != name and value.get(key) is None:
            continue
        within = f"{place}.{key}" if place else key
        fault = f"{within} is missing" if key not in value else _mismatch(value[key], inner, within)
        if fault:
            return fault
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
