"""Tasks from tables: what is read, left out and counted, and what is refused with its place."""

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2bert.eval.tasks.schema import load_task, make_task, task_names


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
    assert first.startswith("f192362887c42800")  # results name it
    assert load_task(write_task(tmp_path / "b", queries, documents[::-1]), "tiny", "test").fingerprint == first
    documents[2]["passage"] += "!"
    assert load_task(write_task(tmp_path / "c", queries, documents), "tiny", "test").fingerprint != first


def test_null_passages_are_left_out_and_empty_texts_kept(tmp_path, write_task, tiny_rows, caplog):
    queries, documents = tiny_rows
    documents[1]["passage"], documents[3]["passage"], queries[3]["query"] = None, " \n", None
    queries[2]["answer_pids"] = ["p1", "p2"]
    task = load_task(write_task(tmp_path, queries, documents), "tiny", "test")
    assert "p1" not in task.documents
    assert "q1" not in task.queries  # only p1 answers it
    assert task.qrels["q2"] == {"p2": 1}
    assert (task.documents["p3"], task.queries["q3"]) == (" \n", "")
    assert "1 of 6 documents have a null passage; left out with 1 queries" in caplog.text
    for kind in ("documents", "queries"):
        assert f"1 of 5 {kind} are empty" in caplog.text


def test_where_the_answers_begin(tmp_path, write_task, tiny_rows):
    queries, documents = tiny_rows
    positions, answers = [0.5, math.nan, 1.0, None, None, None], [None, None, None, "sail", "", "elsewhere"]
    for row, position, answer in zip(queries, positions, answers, strict=True):
        row.update(position=position, answer=answer)
    documents[3]["passage"] = "the sail"
    positions = load_task(write_task(tmp_path, queries, documents), "tiny", "test").positions
    assert positions == {"q0": 0.5, "q2": 1.0, "q3": 0.5}


@pytest.mark.parametrize("kind", ["string_view", "large_string", "dictionary"])
def test_texts_of_any_arrow_type_are_read(tmp_path, write_task, tiny_rows, kind):
    """Polars writes string_view, on which Arrow filters nothing; pandas writes categories as dictionaries."""
    all_have(tiny_rows[0], answer="a")
    folder = write_task(tmp_path, *tiny_rows)
    text = pa.dictionary(pa.int32(), pa.string()) if kind == "dictionary" else getattr(pa, kind)()
    before = load_task(folder, "tiny", "test")
    for path in folder.glob("*/test.parquet"):
        table = pq.read_table(path)
        kinds = {name: pa.list_(text) if name == "answer_pids" else text for name in table.column_names}
        pq.write_table(pa.table({name: pa.array(table[name].to_pylist(), kinds[name]) for name in kinds}), path)
    assert load_task(folder, "tiny", "test") == before


def all_have(rows, **values):
    for row in rows:
        row.update(values)


def drop_passages(queries, documents):
    for row in documents:
        del row["passage"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_passages, "documents/test.parquet needs a column 'passage'"),
        (lambda q, d: all_have(d, passage={"text": "x"}), "'passage' of texts.*struct"),
        (lambda q, d: all_have(q, query=1), "queries/.*'query' of texts.*int64"),
        (lambda q, d: all_have(q, dataset=["tiny"]), "queries/.*'dataset' of texts.*list<"),
        (lambda q, d: all_have(q, answer_pids=[["p0"]]), "'answer_pids' of lists of texts"),
        (lambda q, d: all_have(q, position=170.0), "query 'q0' has position=170.0; .* from 0 to 1"),
        (lambda q, d: d.append({**d[0], "pid": None}), "documents: id None"),
        (lambda q, d: all_have(d, passage=None), "task 'tiny', split 'test' .*has no documents; add some"),
        (lambda q, d: d.append(d[0]), "documents: id 'p0' occurs 2 times"),
        (lambda q, d: q.append(q[0]), "queries: id 'q0' occurs 2 times"),
        (lambda q, d: q[0].update(answer_pids=["p0", "nowhere"]), "query 'q0' is answered by 'nowhere'"),
        (lambda q, d: q[0].update(answer_pids=[]), "query 'q0' has no answer_pids"),
        (lambda q, d: all_have(q, dataset="other"), "task 'tiny'.* has no queries"),
        (lambda q, d: all_have(d, dataset="other"), "'tiny' is not in .*; tasks there: other"),
    ],
)
def test_spoiled_tables_are_refused(tmp_path, write_task, tiny_rows, spoil, message):
    spoil(*tiny_rows)
    write_task(tmp_path, *tiny_rows)
    with pytest.raises(ValueError, match=message):
        load_task(tmp_path, "tiny", "test")


def test_files_that_cannot_be_read_are_named(tiny_data, write_task, tiny_rows):
    for kind in ("documents", "queries"):
        (tiny_data / kind / "._train.parquet").write_bytes(b"what a Mac leaves in archives")
    with pytest.raises(ValueError, match="splits there, one file each: test$"):
        load_task(tiny_data, "tiny", "train")
    (tiny_data / "queries" / "test.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="queries/test.parquet cannot be read"):
        load_task(tiny_data, "tiny", "test")
    write_task(tiny_data, tiny_rows[0], [row | {"dataset": None} for row in tiny_rows[1]])
    with pytest.raises(ValueError, match="names no task in the column 'dataset'"):
        task_names(tiny_data, "test")
    path = tiny_data / "documents" / "test.parquet"
    path.rename(path.with_name("test-00000-of-00001.parquet"))
    with pytest.raises(ValueError, match="one file each: test-00000-of-00001"):
        task_names(tiny_data, "test")


@pytest.mark.parametrize("variant", ["", " (documents_noquery)", " +200", " (documents_noquery) +200", " +200 +10"])
def test_variants_share_the_name_of_the_task(variant):
    queries = [{"qid": "q", "query": "", "answer_pids": ["p"]}]
    task = make_task(f"my data{variant}", "test", queries, [{"pid": "p", "passage": ""}])
    assert task.base_name == "my data"
