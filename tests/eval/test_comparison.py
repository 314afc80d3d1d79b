import pytest

from m2bert.eval.statistics import by_task, differences


def record(system, scores, task="t", fingerprint="f"):
    query_scores = {f"q{i}": score for i, score in enumerate(scores)}
    return {"kind": "retrieval", "system": system, "task": task, "split": "test", "data_fingerprint": fingerprint,
            "query_scores": query_scores}  # fmt: skip


def test_data_that_differ_are_never_compared():
    records = [record("a", [1]), record("b", [1]), record("a", [1], fingerprint="g"), {"kind": "needle"}]
    assert [len(group) for group in by_task(records).values()] == [2, 1]


def test_every_pair_or_one_system_against_the_others():
    records = [record("a", [1, 1, 0.5]), record("b", [0, 0.5, 0.5]), record("c", [0, 0, 0])]
    assert [(row["system"], row["other"]) for row in differences(records)] == [("b", "a"), ("c", "a"), ("c", "b")]
    against = differences(records, "c")
    assert [(row["system"], row["other"]) for row in against] == [("a", "c"), ("b", "c")]
    assert against[0]["difference"] == pytest.approx(2.5 / 3)
    low, high = against[0]["interval_95"]
    assert 0.5 <= low < 2.5 / 3 < high <= 1


def test_a_constant_difference_has_no_spread():
    (row,) = differences([record("a", [0.5, 0.25]), record("b", [0.25, 0.0])])
    assert row["difference"] == -0.25
    assert row["interval_95"] == [-0.25, -0.25]


def test_an_unknown_system_is_named():
    with pytest.raises(ValueError, match="'z' has no scores here; there are: a"):
        differences([record("a", [1])], "z")


def test_a_later_system_of_the_same_name_is_kept_apart():
    records = [record("a", [0, 0]), record("a", [0, 0]), record("a", [1, 0]), record("a", [1, 1])]
    assert [(row["system"], row["other"], row["difference"]) for row in differences(records)] == [
        ("a #2", "a", 0.5),
        ("a #3", "a", 1.0),
        ("a #3", "a #2", 0.5),
    ]


def test_few_queries_show_nothing_beyond_chance():
    few, enough = ([record("a", [1] * n), record("b", [0] * n)] for n in (5, 6))
    assert [differences(records)[0]["beyond_chance"] for records in (few, enough)] == [False, True]
    tied = [record("a", [1, 0] * 5), record("b", [0, 1] * 5)]
    assert not differences(tied)[0]["beyond_chance"]
