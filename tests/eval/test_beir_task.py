"""BEIR's folders: texts and judgments as they are, and what is wrong with its line."""

import gzip
import json

import pytest

from m2bert.eval.mteb_export import to_mteb
from m2bert.eval.rankers import Bm25Ranker
from m2bert.eval.search import score_ranking
from m2bert.eval.tasks.from_beir import load_beir_folder
from m2bert.eval.tasks.load import load_tasks

DOCUMENTS = [
    {"_id": "d0", "title": "Boats", "text": "and sails ", "metadata": {"url": "x"}},
    {"_id": "d1", "title": "", "text": "walls"},
    {"_id": "d2", "text": "sails of mills\n"},
    {"_id": "d3", "title": "Clouds", "text": None},
]
QUERIES = [{"_id": f"q{number}", "text": text} for number, text in enumerate(["sails", "walls", "clouds", "unasked"])]
JUDGED = [("q0", "d2", 2), ("q0", "d0", -1), ("q1", "d1", 1), ("q1", "gone", 1), ("q2", "d3", 0)]


@pytest.fixture
def folder(tmp_path):
    """A folder called fish, with splits test and dev."""
    folder = tmp_path / "fish"
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", DOCUMENTS), ("queries", QUERIES)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in JUDGED)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    (folder / "qrels" / "dev.tsv").write_text("q3\td1\t1\r\n")  # without names
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_texts_and_judgments_are_read_as_they_are(folder, packed, caplog):
    for path in list(folder.rglob("*.*")) if packed else []:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (task,) = load_tasks(str(folder), None, "test")
    assert (task.name, task.split, task.source) == ("fish", "test", str(folder))
    assert task.documents == {"d0": "Boats and sails", "d1": "walls", "d2": "sails of mills", "d3": "Clouds"}
    assert task.queries == {"q0": "sails", "q1": "walls", "q2": "clouds"}
    assert task.qrels == {"q0": {"d2": 2, "d0": -1}, "q1": {"d1": 1, "gone": 1}, "q2": {"d3": 0}}
    assert [task.answers(qid) for qid in task.queries] == [["d2"], ["d1"], []]
    assert "1 of 5 judged documents are not there to be found, such as 'gone'" in caplog.text
    assert "1 of 3 queries are answered by no document there; each scores 0" in caplog.text
    (dev,) = load_tasks(str(folder), ["fish"], "dev")
    assert (dev.queries, dev.qrels) == ({"q3": "unasked"}, {"q3": {"d1": 1}})


def test_a_judgment_that_is_not_relevant_and_one_that_cannot_be_found_count_as_in_mteb(folder):
    """The ranking d0, d2 of grades -1, 2 has 0.6309; one of two answers, found first, has 0.6131."""
    import mteb

    task = load_beir_folder(folder, "test")
    run = {"q0": {"d0": 2.0, "d2": 1.0}, "q1": {"d1": 1.0}, "q2": {"d3": 1.0}}
    scores = score_ranking(run, task.qrels)
    assert scores == pytest.approx({"q0": 0.6309, "q1": 0.6131, "q2": 0}, abs=5e-5)
    found = score_ranking(Bm25Ranker().rank(task), task.qrels)
    model = mteb.get_model("mteb/baseline-bm25s")
    (result,) = mteb.evaluate(model, [to_mteb(task)], cache=None, co2_tracker=False).task_results
    assert result.scores["test"][0]["ndcg_at_10"] == pytest.approx(sum(found.values()) / 3, abs=1e-5)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": 7, "text": "x"}', "corpus.jsonl, line 1: _id is 7; input should be a valid string"),
        ("corpus.jsonl", '{"_id": "d0"}\n\n{"_id": "d1", "text": ["x"]}', r"line 3: text is \['x'\]"),
        ("corpus.jsonl", '{"_id": "d0"}\n{"_id": "d0"}', "documents: id 'd0' occurs 2 times"),
        ("corpus.jsonl", '{"_id": "d\\u0000"}', "id 'd.x00' has '';.*without null characters"),
        ("corpus.jsonl", '["d0"]', "line 1: the value is"),
        ("corpus.jsonl", '{"_id": "0"}', "no document answers any query; 'd0' is judged, '0' is a document"),
        ("queries.jsonl", '{"_id": "q0"}', "2 judged queries are not in queries.jsonl, such as 'q1'"),
        ("qrels/test.tsv", "q\td\tscore\nq0\td0", "test.tsv, line 2: 'q0.td0' is no query-id, corpus-id and whole"),
        ("qrels/test.tsv", "q0\td0\t1\nq0\td0\t0.5", "line 2: .* whole score"),
        ("qrels/test.tsv", "q0\td0\t1\nq0\td0\t2", "line 2: query 'q0' judges document 'd0' as 1 and 2"),
        ("qrels/test.tsv", "q0\td0\t9999999", "'d0' as 9999999; grades must be whole numbers up to 1,000,000"),
        ("qrels/test.tsv", "q0 0 d0 1", "no queries that the split judges"),
    ],
)
def test_what_is_wrong_is_named(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_beir_folder(folder, "test")


def test_files_that_are_missing_or_damaged_are_named(folder):
    with pytest.raises(ValueError, match="train.tsv is not there.*its folder holds dev.tsv, test.tsv"):
        load_beir_folder(folder, "train")
    (folder / "queries.jsonl").unlink()
    (folder / "queries.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "q0"}\n' * 9)[:-9])
    with pytest.raises(ValueError, match=r"queries.jsonl.gz, after line \d, cannot be unpacked"):
        load_beir_folder(folder, "test")
