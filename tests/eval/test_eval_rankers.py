import shutil

import numpy as np
import pytest

from m2bert_eval.evaluate_task import evaluate_encoders
from m2bert_eval.locov1 import load_task
from m2bert_eval.metric import score_ranking
from m2bert_eval.rankers import Bm25Ranker, DenseRanker


class FixedEncoder:
    """Gives the vectors it was told, by text."""

    name = "fixed"

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, texts, task):
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


@pytest.fixture
def small_task(tmp_path, write_task):
    documents = [{"pid": f"p{i}", "passage": text, "dataset": "t"} for i, text in enumerate("abc")]
    queries = [{"qid": "q", "query": "x", "answer_pids": ["p1"], "dataset": "t"}]
    return load_task(write_task(tmp_path, queries, documents), "t", "test")


def test_dense_scores_are_cosines_under_the_right_ids(small_task):
    run = DenseRanker(FixedEncoder({"x": [1, 0], "a": [0, 1], "b": [0.6, 0.8], "c": [-1, 0]})).rank(small_task)
    assert run == {"q": pytest.approx({"p0": 0, "p1": 0.6, "p2": -1})}


def test_a_vector_that_is_not_finite_names_its_text(small_task):
    broken = {"x": [1, 0], "a": [0, 1], "b": [np.nan, 0], "c": [-1, 0]}
    with pytest.raises(ValueError, match="'p1' is not finite"):
        DenseRanker(FixedEncoder(broken)).rank(small_task)


def test_bm25_finds_the_document_with_the_word(tiny_data):
    task = load_task(tiny_data, "tiny", "test")
    assert set(score_ranking(Bm25Ranker().rank(task), task.qrels, k=1).values()) == {1.0}


def test_bm25_scores_unknown_words_and_empty_texts_as_zero(tmp_path, write_task, tiny_rows):
    queries, documents = tiny_rows
    queries[0]["query"] = "zzz"
    queries[1]["query"] = ""
    documents[2]["passage"] = ""
    run = Bm25Ranker().rank(load_task(write_task(tmp_path, queries, documents), "tiny", "test"))
    assert set(run["q0"].values()) == set(run["q1"].values()) == {0.0}
    assert run["q3"]["p2"] == 0.0
    assert run["q3"]["p3"] > 0


def test_bm25_refuses_documents_without_words(tmp_path, write_task, tiny_rows):
    queries, documents = tiny_rows
    for row in documents:
        row["passage"] = "the"
    with pytest.raises(ValueError, match="no document of task 'tiny' has a word"):
        Bm25Ranker().rank(load_task(write_task(tmp_path, queries, documents), "tiny", "test"))


@pytest.mark.parametrize(("variant", "points"), [("documents", 91.04), ("documents_noquery", 90.68)])
def test_bm25_on_qmsum(qmsum_data, tmp_path, variant, points):
    shutil.copytree(qmsum_data / "queries", tmp_path / "queries")
    shutil.copytree(qmsum_data / variant, tmp_path / "documents")
    task = load_task(tmp_path, "qmsum", "test")
    scores = score_ranking(Bm25Ranker().rank(task), task.qrels)
    assert (len(task.queries), len(task.documents)) == (272, 35)
    assert 100 * sum(scores.values()) / len(scores) == pytest.approx(points, abs=0.005)


def test_tfidf_projection_on_qmsum(qmsum_data):
    narrow, wide = evaluate_encoders(["tfidf-rp:256", "tfidf-rp:768"], load_task(qmsum_data, "qmsum", "test"))
    assert 0.58 < narrow["ndcg_at_10"] < 0.68
    assert 0.75 < wide["ndcg_at_10"] < 0.83
    assert 0 < wide["std_over_seeds"] < narrow["std_over_seeds"] < 0.05
