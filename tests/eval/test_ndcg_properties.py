import math
from pathlib import Path

import numpy as np
import pytest

from m2bert.eval.search import score_ranking

pytest.importorskip("hypothesis")
import evaluate
import pytrec_eval
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

METRIC = str(Path(__file__).resolve().parents[2] / "eval" / "metrics" / "ndcg")
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


@given(rankings(), CUTOFFS)
def test_values_follow_the_definition(tables, k):
    run, qrels = tables
    expected = {query: defined_ndcg(run[query], qrels[query], k) for query in qrels}
    assert score_ranking(run, qrels, k) == pytest.approx(expected, abs=1e-9)


@given(rankings(), CUTOFFS, st.randoms(use_true_random=False))
def test_neither_order_nor_scale_matters(tables, k, generator):
    run, qrels = tables
    shuffled = {
        query: dict(generator.sample([(document, 2 * score) for document, score in scores.items()], len(scores)))
        for query, scores in run.items()
    }
    assert score_ranking(shuffled, qrels, k) == score_ranking(run, qrels, k)


@given(rankings(), CUTOFFS)
def test_the_judgements_themselves_are_the_best_ranking(tables, k):
    _, qrels = tables
    best = score_ranking({query: dict(judged) for query, judged in qrels.items()}, qrels, k)
    assert best == pytest.approx({query: float(any(judged.values())) for query, judged in qrels.items()})


@pytest.fixture(scope="module")
def ndcg(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    return evaluate.load(METRIC, experiment_id="properties", keep_in_memory=True, cache_dir=str(folder))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rankings(), CUTOFFS)
def test_the_evaluate_module_gives_the_values_of_pytrec_eval(ndcg, tables, k):
    run, qrels = tables
    found = pytrec_eval.RelevanceEvaluator(qrels, {f"ndcg_cut.{k}"}).evaluate({q: run[q] for q in run if run[q]})
    expected = {query: found.get(query, {}).get(f"ndcg_cut_{k}", 0.0) for query in qrels}
    result = ndcg.compute(
        predictions=[{"query_id": q, "doc_ids": list(run[q]), "scores": list(run[q].values())} for q in run],
        references=[{"query_id": q, "doc_ids": list(qrels[q]), "relevance": list(qrels[q].values())} for q in qrels],
        k=k,
        per_query=True,
    )
    assert result["per_query"] == pytest.approx(expected)
    assert result[f"ndcg_at_{k}"] == pytest.approx(sum(expected.values()) / len(expected))
