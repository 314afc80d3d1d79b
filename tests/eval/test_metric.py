import math
from pathlib import Path

import evaluate
import numpy as np
import pytest

from m2bert.eval.search import score_ranking

METRIC = str(Path(__file__).resolve().parents[2] / "eval" / "metrics" / "ndcg")


def test_a_tie_goes_to_the_larger_document_id():
    run = {"q": {"a": 1.0, "b": 1.0}}
    assert score_ranking(run, {"q": {"b": 1}}, k=1) == {"q": 1.0}
    assert score_ranking(run, {"q": {"a": 1}}, k=1) == {"q": 0.0}


def test_a_query_that_was_not_ranked_counts_as_zero():
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}}
    assert score_ranking({"q1": {"a": 1.0}, "q2": {}}, qrels) == {"q1": 1.0, "q2": 0.0, "q3": 0.0}


@pytest.mark.parametrize(
    ("run", "qrels", "k", "message"),
    [
        ({"q": {"a": 1.0}}, {"q": {"a": 1}}, 0, "k=0"),
        ({"q": {"a": 1.0}}, {"q": {"a": 1}}, 2.5, "k=2.5"),
        ({"q": {"a": 1.0}}, {"q": {"a": 1}}, True, "k=True"),
        ({"q": {"a": 1.0}}, {"q": {"a": 1}}, 10.0, "k=10.0"),
        ({"q": {"a": math.nan}}, {"q": {"a": 1}}, 10, "'a' for query 'q' is NaN"),
        ({"q": {"a": 1.0}, "x": {"a": 1.0}}, {"q": {"a": 1}}, 10, "'x', which has no reference"),
        ({"q": {"a": 1.0}}, {"q": {"a": -1}}, 10, "relevance of document 'a' for query 'q' is -1"),
        ({"q": {"a": 1.0}}, {"q": {"a": 1.5}}, 10, "is 1.5; it must be a whole number"),
        ({"q": {"a": None}}, {"q": {"a": 1}}, 10, "'a' for query 'q' is missing"),
        ({"q": {"a\0b": 1.0}}, {"q": {"a": 1}}, 10, "null character"),
    ],
)
def test_bad_rankings_are_refused(run, qrels, k, message):
    with pytest.raises(ValueError, match=message):
        score_ranking(run, qrels, k)


@pytest.fixture(scope="module")
def ndcg(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    return evaluate.load(METRIC, experiment_id="test_ndcg", keep_in_memory=True, cache_dir=str(folder))


def predicted(query_id, doc_ids, scores):
    return {"query_id": query_id, "doc_ids": doc_ids, "scores": scores}


def judged(query_id, doc_ids, relevance):
    return {"query_id": query_id, "doc_ids": doc_ids, "relevance": relevance}


def test_the_evaluate_module_averages_over_all_references(ndcg):
    result = ndcg.compute(
        predictions=[predicted("q2", [], []), predicted("q1", ["a", "b"], [0.1, 0.9])],
        references=[judged("q1", ["a"], [1]), judged("q2", ["a"], [1])],
        k=5,
        per_query=True,
    )
    second = 1 / math.log2(3)
    assert result == {
        "ndcg_at_5": pytest.approx(second / 2),
        "per_query": {"q1": pytest.approx(second), "q2": 0.0},
    }


def test_the_evaluate_module_gives_the_mean_only_unless_asked(ndcg):
    result = ndcg.compute(predictions=[predicted("q", ["a"], [1.0])], references=[judged("q", ["a"], [1])])
    assert result == {"ndcg_at_10": 1.0}


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([predicted("q", ["a", "b"], [1.0])], [judged("q", ["a"], [1])], "2 doc_ids but 1 scores"),
        ([predicted("q", ["a"], [1.0])], [judged("q", ["a", "b"], [1])], "2 doc_ids but 1 relevance"),
        ([predicted("q", ["a", "a"], [1.0, 2.0])], [judged("q", ["a"], [1])], "name a document twice"),
        (
            [predicted("q", ["a"], [1.0])] * 2,
            [judged("q", ["a"], [1]), judged("r", ["a"], [1])],
            "occurs twice",
        ),
        ([predicted("x", ["a"], [1.0])], [judged("q", ["a"], [1])], "'x', which has no reference"),
        ([predicted("q", ["a"], [math.nan])], [judged("q", ["a"], [1])], "NaN"),
        ([predicted("q", None, [1.0])], [judged("q", ["a"], [1])], "give empty lists for none"),
        ([predicted("q", ["a"], [1.0])], [judged("q", ["a"], [1.7])], "is 1.7; it must be a whole number"),
        ([predicted("q", ["a"], [1.0])], [judged("q", ["a"], [2.0**40])], "must be a whole number, 0 or more, up to"),
        ([predicted("q", ["a"], [1.0])], [judged("q", ["a"], [math.nan])], "is nan; it must be a whole number"),
        ([], [], "references are empty"),
    ],
)
def test_the_evaluate_module_refuses_bad_tables(ndcg, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        ndcg.compute(predictions=predictions, references=references)


@pytest.mark.parametrize("k", [2**31, 2**32 + 1, 2**63, 10**30])
def test_a_cut_off_beyond_any_ranking_counts_all_of_it(k):
    assert score_ranking({"q": {"a": 0.1, "b": 0.9}}, {"q": {"a": 1}}, k) == {"q": pytest.approx(1 / math.log2(3))}


def test_every_kind_of_whole_number_is_a_cut_off():
    run, qrels = {"q": {"a": 2.0, "b": 1.0}}, {"q": {"b": 1}}
    assert score_ranking(run, qrels, k=np.int64(10)) == score_ranking(run, qrels, k=10)


def test_the_description_stands_on_the_class_and_its_examples_run(monkeypatch, tmp_path):
    import doctest
    import sys
    from pathlib import Path

    import evaluate

    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    module = sys.modules[type(evaluate.load("eval/metrics/ndcg")).__module__]
    assert "discounted by" in module.NDCG.__doc__
    result = doctest.testmod(module)
    assert result.attempted >= 2
    assert result.failed == 0
