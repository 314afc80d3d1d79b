import numpy as np
import pytest

from m2bert.eval import statistics
from m2bert.eval.statistics import by_task, differences, mean_interval, paired_difference_interval


def record(system, scores, task="t", fingerprint="f"):
    query_scores = {f"q{i}": score for i, score in enumerate(scores)}
    return {"kind": "retrieval", "system": system, "task": task, "split": "test", "data_fingerprint": fingerprint,
            "query_scores": query_scores}  # fmt: skip


def test_the_interval_agrees_with_the_normal_one_and_keeps_its_digits(monkeypatch):
    """Published intervals were made by this generator in this order."""
    scores = np.random.default_rng(1).normal(0.6, 0.2, size=400)
    half = 1.96 * scores.std() / 400**0.5
    whole = mean_interval(scores)
    assert whole == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.1 * half)
    assert mean_interval(scores, seed=1) != whole
    assert mean_interval(np.random.default_rng(1).random(7)) == (0.36556314293187125, 0.7996844410409824)
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", 1_000)  # memory does not decide
    assert mean_interval(scores) == whole


def test_pairing_removes_what_the_systems_share():
    hard = np.random.default_rng(2).random(200)
    better = {f"q{i}": float(score) + 0.01 + 0.002 * (i % 3) for i, score in enumerate(hard)}
    worse = {f"q{i}": float(hard[i]) for i in reversed(range(200))}
    mean, low, high = paired_difference_interval(better, worse)
    assert 0.01 < low < mean < high < 0.015
    unpaired = mean_interval(list(better.values()))
    assert unpaired[1] - unpaired[0] > 10 * (high - low)


def test_data_that_differ_are_never_compared():
    records = [record("a", [1]), record("b", [1]), record("a", [1], fingerprint="g"), {"kind": "needle"}]
    assert [len(group) for group in by_task(records).values()] == [2, 1]
    with pytest.raises(ValueError, match="'q2'"):
        paired_difference_interval({"q1": 1.0, "q2": 0.0}, {"q1": 1.0})
    with pytest.raises(ValueError, match="'z' has no scores here; there are: a"):
        differences([record("a", [1])], "z")


def test_every_pair_or_one_system_against_the_others():
    records = [record("a", [1, 1, 0.5]), record("b", [0, 0.5, 0.5]), record("c", [0, 0, 0])]
    assert [(row["system"], row["other"]) for row in differences(records)] == [("b", "a"), ("c", "a"), ("c", "b")]
    against = differences(records, "c")
    assert [(row["system"], row["other"]) for row in against] == [("a", "c"), ("b", "c")]
    assert against[0]["difference"] == pytest.approx(2.5 / 3)
    low, high = against[0]["interval_95"]
    assert 0.5 <= low < 2.5 / 3 < high <= 1
    (constant,) = differences([record("a", [0.5, 0.25]), record("b", [0.25, 0.0])])
    assert (constant["difference"], constant["interval_95"]) == (-0.25, [-0.25, -0.25])


def test_a_later_system_of_the_same_name_is_kept_apart():
    records = [record("a", [0, 0]), record("a", [0, 0]), record("a", [1, 0]), record("a", [1, 1])]
    rows = [(row["system"], row["other"], row["difference"]) for row in differences(records)]
    assert rows == [("a #2", "a", 0.5), ("a #3", "a", 1.0), ("a #3", "a #2", 0.5)]


def test_few_queries_show_nothing_beyond_chance():
    few, enough = ([record("a", [1] * n), record("b", [0] * n)] for n in (5, 6))
    assert [differences(records)[0]["beyond_chance"] for records in (few, enough)] == [False, True]
    assert not differences([record("a", [1, 0] * 5), record("b", [0, 1] * 5)])[0]["beyond_chance"]
