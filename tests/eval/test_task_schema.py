"""Tasks from tables: what is read, left out and counted, and what is refused with its place."""

import gzip
import json
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


def test_judged_documents_that_are_not_there_count_as_missed(tmp_path, write_task, tiny_rows, caplog):
    queries, documents = tiny_rows
    queries[0]["answer_pids"], queries[1]["answer_pids"] = ["gone", "p0"], ["away"]
    all_have(queries, answer="a")
    documents[0]["passage"] = "1234a678"
    task = load_task(write_task(tmp_path, queries, documents), "tiny", "test")
    assert task.qrels["q0"] == {"gone": 1, "p0": 1}
    assert (task.answers("q0"), task.answers("q1")) == (["p0"], [])
    assert task.positions["q0"] == 0.5
    assert "q1" not in task.positions
    assert "2 of 7 judged documents are not there to be found, such as 'away'" in caplog.text
    assert "1 of 6 queries are answered by no document there" in caplog.text


@pytest.mark.parametrize("kind", ["parts", "lines", "packed lines"])
def test_the_parts_of_a_split_are_one_table(tiny_data, kind):
    whole = load_task(tiny_data, "tiny", "test")
    for path in list(tiny_data.glob("*/test.parquet")):
        table = pq.read_table(path)
        path.unlink()
        for number, part in enumerate([table[:2], table[2:5], table[5:]]):
            name = path.with_name(f"test-0000{number}-of-00003")
            lines = "".join(f"{json.dumps(row)}\n" for row in part.to_pylist()).encode()
            if kind == "parts":
                pq.write_table(part, f"{name}.parquet")
            elif kind == "lines":
                name.with_suffix(".jsonl").write_bytes(lines)
            else:
                name.with_suffix(".jsonl.gz").write_bytes(gzip.compress(lines))
    assert load_task(tiny_data, "tiny", "test") == whole
    assert task_names(tiny_data, "test") == ["tiny"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"qid": "q"}\n["q"]', "test.jsonl, line 2 is no JSON object"),
        ('{"qid": "q"}\n{"qid": 1}', "test.jsonl cannot be read .*; write it again"),
        ('{"qid": 1}', "'qid' of texts; it has qid .int64"),
        ('{"qid": "q"}\n{"qid"', "test.jsonl, line 2 is no valid JSON"),
    ],
)
def test_lines_that_are_no_rows_are_named(tiny_data, lines, message):
    (tiny_data / "queries" / "test.parquet").unlink()
    (tiny_data / "queries" / "test.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=message):
        load_task(tiny_data, "tiny", "test")


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
        (lambda q, d: all_have(q, answer_pids=["0"]), "no document answers any query; '0' is judged, 'p0' is a doc"),
        (lambda q, d: d[0].update(pid="p\0"), r"id 'p.x00' has .*; both must be texts, ids without null characters"),
        (lambda q, d: q[0].update(answer_pids=["p0", "p\0"]), r"'q0' judges document 'p.x00' as 1; ids must be texts"),
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
    with pytest.raises(
        ValueError, match="queries has no train.parquet and no train.jsonl; tables there: test.parquet$"
    ):
        load_task(tiny_data, "tiny", "train")
    (tiny_data / "queries" / "test.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="queries/test.parquet cannot be read .*; write it again$"):
        load_task(tiny_data, "tiny", "test")
    write_task(tiny_data, tiny_rows[0], [row | {"dataset": None} for row in tiny_rows[1][:1]] + tiny_rows[1][1:])
    with pytest.raises(ValueError, match="a row has null in the column 'dataset'"):
        task_names(tiny_data, "test")
    path = tiny_data / "documents" / "test.parquet"
    path.rename(path.with_name("test-00000-of-00002.parquet"))
    with pytest.raises(ValueError, match="documents has test-00000-of-00002.parquet: not all 2 parts"):
        task_names(tiny_data, "test")


@pytest.mark.parametrize("variant", ["", " (documents_noquery)", " +200", " (documents_noquery) +200", " +200 +10"])
def test_variants_share_the_name_of_the_task(variant):
    queries = [{"qid": "q", "query": "", "answer_pids": ["p"]}]
    task = make_task(f"my data{variant}", "test", queries, [{"pid": "p", "passage": ""}])
    assert task.base_name == "my data"
