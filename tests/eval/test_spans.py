import json

import pytest

from m2bert.eval.analyses.spans import describe_spans, ndcg_by_quarter, quarter
from m2bert.eval.tasks.schema import make_task


def task_with(positions):
    documents = [{"pid": "long", "passage": "x" * 1_000}, {"pid": "short", "passage": "y" * 100}]
    queries = [
        {"qid": f"q{number}", "query": "?", "answer_pids": [pid], "position": share}
        for number, (pid, share) in enumerate(positions)
    ]
    return make_task("tiny", "test", queries, documents)


def test_quartiles_are_in_characters_of_the_answers_document():
    record = describe_spans(task_with([("long", 0.0), ("long", 0.2), ("long", 0.4), ("short", 0.5), ("long", 0.9)]))
    assert record["positions"] == {"count": 5, "quartiles": [50, 200, 400], "mean_document_chars": 550}
    assert record["quarters"] == [2, 1, 1, 1]
    json.dumps(record)
    some = describe_spans(task_with([("long", 0.3), ("long", None), ("long", 0.3)]))
    assert some["positions"] == {"count": 2, "quartiles": [300, 300, 300], "mean_document_chars": 1000}
    with pytest.raises(ValueError, match="'tiny' does not say where answers begin.*`position`.*`answer`"):
        describe_spans(task_with([("long", None)]))


def test_quarters_begin_at_their_boundary_and_the_end_belongs_to_the_last():
    assert [quarter(share) for share in (0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 1)] == [1, 1, 2, 3, 3, 4, 4]


def test_scores_by_quarter():
    positions = {"a": 0.1, "b": 0.2, "c": 0.9, "unscored": 0.5}
    rows = ndcg_by_quarter({"a": 1.0, "b": 0.5, "c": 0.25, "somewhere": 1.0}, positions)
    assert [list(row.values()) for row in rows] == [
        [1, 2, 0.75, [0.5, 1.0]], [2, 0, None, None], [3, 0, None, None], [4, 1, 0.25, None],
    ]  # fmt: skip
