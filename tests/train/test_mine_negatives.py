"""Negatives found by BM25."""

import pyarrow.parquet as pq
import pytest

from m2bert_eval.locov1 import load_task
from m2bert_eval.rankers import Bm25Ranker
from m2bert_train import mine_negatives
from m2bert_train.retrieval_data import read_negatives


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "--split=test is the test split"),
        ({"task": "other"}, "'other' is not in .*; tasks there: toy"),
        ({"negatives": 13}, "negatives=13 must be at least 1, and task 'toy' has 13 documents, up to 1 of which"),
        ({"negatives": 0}, "negatives=0 must be at least 1"),
    ],
)
def test_bad_input_writes_nothing(toy_corpus, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        mine_negatives.main(arguments(toy_corpus, tmp_path / "out.parquet", **changes))
    assert not list(tmp_path.iterdir())
