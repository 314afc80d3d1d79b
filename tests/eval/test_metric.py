"""nDCG@k against its definition and pytrec_eval, and the folder as a module of `evaluate` and as a Space."""

import doctest
import math
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import pytrec_eval
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m2bert.eval.metrics.ndcg.ndcg import ndcg_at_k
from m2bert.eval.search import score_metrics, score_ranking

FOLDER = Path(__file__).resolve().parents[2] / "eval" / "metrics" / "ndcg"
DOCUMENTS = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=3)
# Few values tie often; floats that differ in 64 bits only tie as 32-bit floats.
SCORES = st.one_of(st.sampled_from([0.0, -0.5, 0.1, 0.1 + 1e-12]), st.floats(-1e6, 1e6, width=32))
CUTOFFS = st.sampled_from([1, 2, 3, 10, 1000])


@st.composite
def rankings(draw):
    """(run, qrels) of a few queries: graded, tied, unjudged and unranked documents, queries that found nothing."""
    queries = draw(st.lists(DOCUMENTS, min_size=1, max_size=4, unique=True))
    run, qrels = {}, {}
    for query in queries:
        documents = draw(st.lists(DOCUMENTS, min_size=1, max_size=12, unique=True))
        ranked, judged = (draw(st.lists(st.sampled_from(documents), unique=True)) for _ in range(2))
        run[query] = {document: draw(SCORES) for document in ranked}
        qrels[query] = {document: draw(st.integers(0, 4)) for document in judged or documents[:1]}
    return run, qrels


def defined_ndcg(scores: dict[str, float], judged: dict[str, int], k: int) -> float:
    """nDCG@k from its definition: linear gain, log2 discount, ties by descending document id."""
    order = sorted(scores, key=lambda document: (np.float32(scores[document]), document.encode()), reverse=True)
    gained = sum(judged.get(document, 0) / math.log2(rank + 2) for rank, document in enumerate(order[:k]))
    possible = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(sorted(judged.values(), reverse=True)[:k]))
    return gained / possible if possible else 0.0


@given(rankings(), CUTOFFS, st.randoms(use_true_random=False))
def test_values_follow_the_definition_whatever_the_order_and_scale(tables, k, generator):
    run, qrels = tables
    values = score_ranking(run, qrels, k)
    assert values == pytest.approx({query: defined_ndcg(run[query], qrels[query], k) for query in qrels}, abs=1e-9)
    shuffled = {
        query: dict(generator.sample([(document, 2 * score) for document, score in scores.items()], len(scores)))
        for query, scores in run.items()
    }
    assert score_ranking(shuffled, qrels, k) == values
    best = score_ranking({query: dict(judged) for query, judged in qrels.items()}, qrels, k)
    assert best == pytest.approx({query: float(any(judged.values())) for query, judged in qrels.items()})


def test_ties_and_queries_that_were_not_ranked():
    run = {"q": {"a": 1.0, "b": 1.0}}
    assert score_ranking(run, {"q": {"b": 1}}, k=np.int64(1)) == {"q": 1.0}  # a tie goes to the larger id
    assert score_ranking(run, {"q": {"a": 1}}, k=1) == {"q": 0.0}
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}}
    assert score_ranking({"q1": {"a": 1.0}, "q2": {}}, qrels) == {"q1": 1.0, "q2": 0.0, "q3": 0.0}


def test_what_would_give_a_wrong_value_is_refused():
    run, qrels = {"q": {"a": 1.0}}, {"q": {"a": 1}}
    cases = [
        (run, qrels, 0, "k=0"),
        ({"q": {"a": None}}, qrels, 10, "'a' for query 'q' is None"),
        (run, {"q": {"a": 2**40}}, 10, "relevance of document 'a' for query 'q' is 1099511627776"),
    ]
    for *arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            score_ranking(*arguments)


@pytest.fixture(scope="module")
def ndcg(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    return evaluate.load(str(FOLDER), experiment_id="test_ndcg", keep_in_memory=True, cache_dir=str(folder))


def predicted(query_id, doc_ids, scores):
    return {"query_id": query_id, "doc_ids": doc_ids, "scores": scores}


def judged(query_id, doc_ids, relevance):
    return {"query_id": query_id, "doc_ids": doc_ids, "relevance": relevance}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rankings(), CUTOFFS)
def test_the_evaluate_module_gives_the_values_of_pytrec_eval(ndcg, tables, k):
    run, qrels = tables
    found = pytrec_eval.RelevanceEvaluator(qrels, {f"ndcg_cut.{k}"}).evaluate({q: run[q] for q in run if run[q]})
    expected = {query: found.get(query, {}).get(f"ndcg_cut_{k}", 0.0) for query in qrels}
    result = ndcg.compute(
        predictions=[predicted(q, list(run[q]), list(run[q].values())) for q in run],
        references=[judged(q, list(qrels[q]), list(qrels[q].values())) for q in qrels],
        k=k,
        per_query=True,
    )
    assert result.pop("per_query") == pytest.approx(expected)
    assert result == pytest.approx({f"ndcg_at_{k}": sum(expected.values()) / len(expected)})


FOUND, ONE = predicted("q", ["a"], [1.0]), judged("q", ["a"], [1])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([predicted("q", ["a", "b"], [1.0])], [ONE], "predictions of query 'q': 2 doc_ids"),
        ([predicted("q", ["a", "a"], [1.0, 2.0])], [ONE], "each document once"),
        ([FOUND] * 2, [ONE, judged("r", ["a"], [1])], "predictions of query 'q': .* each query one row"),
        ([predicted("x", ["a"], [1.0])], [ONE], "'x', which has no reference"),
        ([predicted("q", ["a"], [math.nan])], [ONE], "score of document 'a' for query 'q' is nan"),
        ([FOUND], [judged("q", ["a"], [1.7])], "is 1.7; give a whole number"),
        ([FOUND], [judged("q", ["a"], [math.nan])], "is nan; give a whole number"),
    ],
)
def test_the_evaluate_module_refuses_bad_tables(ndcg, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        ndcg.compute(predictions=predictions, references=references)


@pytest.mark.parametrize("k", [0, -1, True, 10.0, "10", None])
def test_a_cutoff_is_a_whole_number(ndcg, k):
    with pytest.raises(ValueError, match=f"k={k} is no cut-off; k must be a whole number from 1 on"):
        ndcg.compute(predictions=[FOUND], references=[ONE], k=k)
    assert "ndcg_at_10" in ndcg.compute(predictions=[FOUND], references=[ONE], k=np.int64(10))


def test_the_examples_of_the_docstring_run(monkeypatch):
    monkeypatch.chdir(FOLDER.parents[2])
    module = sys.modules[type(evaluate.load("eval/metrics/ndcg")).__module__]
    assert "discounted by" in module.NDCG.__doc__
    result = doctest.testmod(module)
    assert (result.attempted >= 2, result.failed) == (True, 0)


def test_the_card_is_a_space_of_evaluate_and_its_example_gives_what_it_says(ndcg):
    _, front, text = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert {"title", "emoji", "colorFrom", "colorTo", "sdk_version", "description"} <= card.keys()
    assert (card["sdk"], set(card["tags"])) == ("gradio", {"evaluate", "metric"})
    assert (FOLDER / card["app_file"]).is_file()
    code = text.split("```python\n")[1].split("```")[0]
    result = eval(code[code.index("ndcg.compute(") :], {"ndcg": ndcg})
    shown = text.split("gives `")[1].split("`")[0]
    assert f"{result['ndcg_at_10']:.4f}"[:6] in shown
    assert f"{result['per_query']['q1']:.4f}"[:6] in shown


def test_negative_relevance_counts_as_zero():
    """trec_eval reads it so; BEIR's TREC-COVID and Touché have such judgments."""
    run, qrels = {"q": {"d2": 2.0, "d1": 1.0}, "r": {"d2": 1.0}}, {"q": {"d1": 2, "d2": -1}, "r": {"d2": -1}}
    assert ndcg_at_k(run, qrels) == {"q": pytest.approx(1 / math.log2(3)), "r": 0.0}
    assert score_metrics(run, qrels)["recall_at_100"] == {"q": 1.0, "r": 0.0}
