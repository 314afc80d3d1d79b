import logging

import pytest

from m2bert_eval.locov1 import load_task


def test_reads_only_the_rows_of_the_task(tmp_path, write_task, tiny_rows):
    queries, documents = tiny_rows
    other = [{**documents[0], "pid": "other", "dataset": "another"}]
    task = load_task(write_task(tmp_path, queries, documents + other), "tiny", "test")
    assert list(task.queries) == [f"q{i}" for i in range(6)]
    assert "other" not in task.documents
    assert task.qrels["q3"] == {"p3": 1}


def test_the_fingerprint_follows_the_content(tmp_path, write_task, tiny_rows):
    queries, documents = tiny_rows
    first = load_task(write_task(tmp_path / "a", queries, documents), "tiny", "test").fingerprint
    assert load_task(write_task(tmp_path / "b", queries, documents), "tiny", "test").fingerprint == first
    documents[2]["passage"] += "!"
    assert load_task(write_task(tmp_path / "c", queries, documents), "tiny", "test").fingerprint != first


def test_a_null_passage_is_left_out_with_the_queries_it_alone_answers(tmp_path, write_task, tiny_rows, caplog):
    queries, documents = tiny_rows
    documents[1]["passage"] = None
    queries[2]["answer_pids"] = ["p1", "p2"]
    with caplog.at_level(logging.WARNING):
        task = load_task(write_task(tmp_path, queries, documents), "tiny", "test")
    assert "p1" not in task.documents
    assert "q1" not in task.queries
    assert task.qrels["q2"] == {"p2": 1}
    assert "1 documents have a null passage; left out with 1 queries" in caplog.text


def test_a_null_query_is_the_empty_text_and_is_counted(tmp_path, write_task, tiny_rows, caplog):
    queries, documents = tiny_rows
    queries[1]["query"] = None
    with caplog.at_level(logging.WARNING):
        task = load_task(write_task(tmp_path, queries, documents), "tiny", "test")
    assert task.queries["q1"] == ""
    assert "1 of 6 rows have a null query" in caplog.text


def repeat_document(queries, documents):
    documents.append(documents[0])


def repeat_query(queries, documents):
    queries.append(queries[0])


def name_a_stranger(queries, documents):
    queries[0]["answer_pids"] = ["p0", "nowhere"]


def drop_answers(queries, documents):
    queries[0]["answer_pids"] = []


def drop_column(queries, documents):
    for row in documents:
        del row["passage"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (repeat_document, "pid 'p0' occurs 2 times"),
        (repeat_query, "qid 'q0' occurs 2 times"),
        (name_a_stranger, "'q0' name 'nowhere'"),
        (drop_answers, "'q0' of task 'tiny' has no answer_pids"),
        (drop_column, "lacks the column 'passage'"),
    ],
)
def test_spoiled_tables_are_refused(tmp_path, write_task, tiny_rows, spoil, message):
    spoil(*tiny_rows)
    write_task(tmp_path, *tiny_rows)
    with pytest.raises(ValueError, match=message):
        load_task(tmp_path, "tiny", "test")


def test_an_unknown_task_or_split_names_those_there(tiny_data):
    with pytest.raises(ValueError, match="tasks there: tiny"):
        load_task(tiny_data, "huge", "test")
    with pytest.raises(ValueError, match="splits in .*: test"):
        load_task(tiny_data, "tiny", "train")
