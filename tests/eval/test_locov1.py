import logging
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2bert.eval.tasks.locov1 import load_task, make_task, task_names


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


def test_empty_texts_are_counted(tmp_path, write_task, tiny_rows, caplog):
    queries, documents = tiny_rows
    documents[1]["passage"] = " \n"
    load_task(write_task(tmp_path, queries, documents), "tiny", "test")
    assert "task tiny: 1 of 6 documents are empty" in caplog.text


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


def number_the_ids(queries, documents):
    for i, (query, document) in enumerate(zip(queries, documents, strict=True)):
        query["answer_pids"], document["pid"] = [i], i


def number_the_queries(queries, documents):
    for i, row in enumerate(queries):
        row["query"] = i


def number_the_tasks(queries, documents):
    for row in queries + documents:
        row["dataset"] = 3


def write_answers_as_texts(queries, documents):
    for row in queries:
        row["answer_pids"] = row["answer_pids"][0]


def lose_a_pid(queries, documents):
    documents.append({**documents[0], "pid": None})


def nest_the_tasks(queries, documents):
    for row in queries + documents:
        row["dataset"] = [row["dataset"]]


def nest_the_answers(queries, documents):
    for row in queries:
        row["answer_pids"] = [row["answer_pids"]]


def describe_the_passages(queries, documents):
    for row in documents:
        row["passage"] = {"text": row["passage"]}


def place_answers_in_characters(queries, documents):
    for row in queries:
        row["position"] = 170.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (number_the_ids, "column 'pid' holds 0, which is no text"),
        (number_the_queries, "column 'query' holds 0, which is no text"),
        (number_the_tasks, "has 3 in the column 'dataset'"),
        (write_answers_as_texts, "answer_pids of query 'q0' is 'p0'; it must be a list"),
        (nest_the_tasks, "queries/test.parquet: column 'dataset' holds list<.*>, not texts"),
        (nest_the_answers, "queries/test.parquet: column 'answer_pids' holds list<.*list<.*>>, not lists of texts"),
        (describe_the_passages, "documents/test.parquet: column 'passage' holds struct<.*>, not texts"),
        (lose_a_pid, "column 'pid' holds None"),
        (place_answers_in_characters, "position=170.0 of query 'q0' must be from 0 to 1"),
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


@pytest.mark.parametrize("kind", ["string_view", "large_string"])
def test_texts_of_any_kind_are_read(tmp_path, write_task, tiny_rows, kind):
    """Polars writes string_view, on which Arrow filters nothing."""
    folder, text = write_task(tmp_path, *tiny_rows), getattr(pa, kind)()
    before = load_task(folder, "tiny", "test")
    for path in folder.glob("*/test.parquet"):
        table = pq.read_table(path)
        kinds = {name: pa.list_(text) if name == "answer_pids" else text for name in table.column_names}
        pq.write_table(pa.table({name: pa.array(table[name].to_pylist(), kinds[name]) for name in kinds}), path)
    assert load_task(folder, "tiny", "test") == before


def test_tables_without_a_task_are_refused(tmp_path, write_task, tiny_rows):
    queries, documents = tiny_rows
    folder = write_task(tmp_path, queries, [row | {"dataset": None} for row in documents])
    with pytest.raises(ValueError, match="names no task in the column 'dataset'"):
        task_names(folder, "test")


def test_an_unknown_task_or_split_names_those_there(tiny_data):
    with pytest.raises(ValueError, match="tasks there: tiny"):
        load_task(tiny_data, "huge", "test")
    (tiny_data / "documents" / "._train.parquet").write_bytes(b"what a Mac leaves in archives")
    (tiny_data / "queries" / "._train.parquet").write_bytes(b"what a Mac leaves in archives")
    with pytest.raises(ValueError, match="splits in .*: test$"):
        load_task(tiny_data, "tiny", "train")


def test_only_null_passages_leave_no_task():
    queries = [{"qid": "q", "query": "what", "answer_pids": ["p"]}]
    with pytest.raises(ValueError, match="task 't': every passage in the split 'test' is null"):
        make_task("t", "test", queries, [{"pid": "p", "passage": None}])


def test_a_position_that_is_not_a_number_is_unknown(tmp_path, write_task, tiny_rows):
    queries, documents = tiny_rows
    for i, row in enumerate(queries):
        row["position"] = math.nan if i else 0.5
    assert load_task(write_task(tmp_path, queries, documents), "tiny", "test").positions == {"q0": 0.5}


def test_a_broken_file_is_named(tiny_data):
    (tiny_data / "queries" / "test.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="queries/test.parquet cannot be read"):
        load_task(tiny_data, "tiny", "test")


@pytest.mark.parametrize("variant", ["", " (documents_noquery)", " +200", " (documents_noquery) +200"])
def test_variants_share_the_name_of_the_task(variant):
    task = make_task(
        f"my data{variant}", "test", [{"qid": "q", "query": "", "answer_pids": ["p"]}], [{"pid": "p", "passage": ""}]
    )
    assert task.base_name == "my data"


def test_the_cause_of_an_empty_task_is_named(tmp_path, write_task, tiny_rows):
    queries, documents = tiny_rows
    folder = write_task(tmp_path, queries, [row | {"passage": None} for row in documents[:1]] + documents[1:])
    for path in (folder / "documents").glob("test.parquet"):
        path.rename(path.with_name("test-00000-of-00001.parquet"))
    with pytest.raises(ValueError, match="make test-00000-of-00001 one file, test.parquet"):
        load_task(folder, "tiny", "test")
    nothing = [row | {"passage": None} for row in documents]
    with pytest.raises(ValueError, match="every passage in the split 'test' is null"):
        make_task("tiny", "test", queries, nothing)
