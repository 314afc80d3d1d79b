"""Negatives found by BM25."""

import pyarrow.parquet as pq
import pytest

from m2bert.eval.rankers import Bm25Ranker
from m2bert.eval.tasks.schema import load_task, make_task
from m2bert.train.pairs import mine_negatives
from m2bert.train.pairs.data import read_negatives


def arguments(folder, output, **changes):
    options = {"data": folder, "task": "toy", "negatives": 4, "output": output} | changes
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


@pytest.mark.parametrize("at_once", [1, 10**6])  # pairs scored at once: a query, or all
def test_the_best_documents_that_do_not_answer(toy_corpus, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(mine_negatives, "SCORES_AT_ONCE", at_once)
    output = tmp_path / "new" / "negatives.parquet"
    mine_negatives.main(arguments(toy_corpus, output))
    task = load_task(toy_corpus, "toy", "train")
    negatives = read_negatives(str(output), [task])["toy"]  # refuses positives
    assert negatives.keys() == task.queries.keys()
    for qid, scores in Bm25Ranker().rank(task).items():
        assert len(set(negatives[qid])) == 4
        worst = min(scores[pid] for pid in negatives[qid])
        others = scores.keys() - task.qrels[qid].keys() - set(negatives[qid])
        assert worst >= max(scores[pid] for pid in others)
        assert sorted(negatives[qid], key=scores.get, reverse=True) == negatives[qid]
    assert pq.read_schema(output).names == ["qid", "negative_pids", "dataset"]


def test_the_tasks_of_any_folder_are_mined(tmp_path):
    (tmp_path / "documents.csv").write_text("id,text\na,river\nb,river bridge\nc,stone\n")
    (tmp_path / "queries.csv").write_text("query,answer\nbridge,a\nriver,b\n")
    given = ["--data", str(tmp_path), "--negatives", "1", "--output", str(tmp_path / "n.parquet")]
    mine_negatives.main(given)
    with pytest.raises(ValueError, match="n.parquet exists; .*--overwrite"):
        mine_negatives.main(given)
    mine_negatives.main([*given, "--overwrite"])
    rows = pq.read_table(tmp_path / "n.parquet").to_pylist()
    assert [(row["qid"], row["negative_pids"], row["dataset"]) for row in rows] == [
        ("q1", ["b"], tmp_path.name), ("q2", ["a"], tmp_path.name)]  # fmt: skip


def test_equal_scores_are_ordered_by_id_and_answers_left_out():
    """As many answers as a query may have, all ranked above what is to be found."""
    documents = [{"pid": f"p{i}", "passage": "river" if i < 6 else "violin"} for i in (3, 0, 7, 5, 1, 6, 4, 2)]
    queries = [{"qid": "q", "query": "river", "answer_pids": ["p5", "p3", "p2"]},
               {"qid": "other", "query": "violin river", "answer_pids": ["p0"]},
               {"qid": "unknown", "query": "piston", "answer_pids": ["p7"]}]  # fmt: skip
    found = list(mine_negatives.mine(make_task("one", "train", queries, documents), 4))
    assert [row["negative_pids"] for row in found] == [
        ["p4", "p1", "p0", "p7"], ["p7", "p6", "p5", "p4"], ["p6", "p5", "p4", "p3"]]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "--split=test is the test split"),
        ({"task": "other"}, "'other' is not in .*; tasks there: toy"),
        ({"negatives": 13}, "--negatives=13 must be 1 to 12"),
        ({"negatives": 0}, "--negatives=0 must be 1 to 12"),
    ],
)
def test_bad_input_writes_nothing(toy_corpus, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        mine_negatives.main(arguments(toy_corpus, tmp_path / "out.parquet", **changes))
    assert not list(tmp_path.iterdir())
