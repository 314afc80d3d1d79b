import numpy as np
import pytest

from m2bert.eval import statistics as intervals
from m2bert.eval.statistics import mean_interval, paired_difference_interval


def test_agrees_with_the_normal_interval():
    scores = np.random.default_rng(1).normal(0.6, 0.2, size=400)
    half = 1.96 * scores.std() / 400**0.5
    assert mean_interval(scores) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.1 * half)


def test_is_seeded():
    scores = np.random.default_rng(1).random(50)
    assert mean_interval(scores) == mean_interval(scores)
    assert mean_interval(scores, seed=1) != mean_interval(scores)


def test_pairing_removes_what_the_systems_share():
    hard = np.random.default_rng(2).random(200)
    better = {f"q{i}": float(score) + 0.01 + 0.002 * (i % 3) for i, score in enumerate(hard)}
    worse = {f"q{i}": float(hard[i]) for i in reversed(range(200))}
    mean, low, high = paired_difference_interval(better, worse)
    assert 0.01 < low < mean < high < 0.015
    unpaired = mean_interval(list(better.values()))
    assert unpaired[1] - unpaired[0] > 10 * (high - low)


def test_refuses_other_queries_and_no_scores():
    with pytest.raises(ValueError, match="'q2'"):
        paired_difference_interval({"q1": 1.0, "q2": 0.0}, {"q1": 1.0})
    with pytest.raises(ValueError, match="at least one query"):
        mean_interval([])


def test_memory_does_not_decide(monkeypatch):
    scores = np.random.default_rng(3).random(70)
    whole = mean_interval(scores)
    monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", 1_000)
    assert mean_interval(scores) == whole
