"""Exact search against a brute-force oracle, trec_eval's order, and hybrids of two rankings.

Scores are small exact numbers, so that equal ones are really equal.
"""

import numpy as np
import pytest
import pytrec_eval

from m2bert.eval import search
from m2bert.eval.search import (
    ExactSearch,
    choose_weight,
    reciprocal_rank_fusion,
    rerank_order,
    standardized_fusion,
    trec_order,
    weighted_fusion,
)


@pytest.fixture
def corpus():
    """Queries (6, 4), the ids of 50 documents in no order, and of each its rows (1 to 3, 4)."""
    generator = np.random.default_rng(0)
    queries = generator.integers(-2, 3, (6, 4)).astype(np.float32)
    pids = [f"p{i}" for i in generator.permutation(50)]
    return queries, pids, [generator.integers(-2, 3, (1 + i % 3, 4)).astype(np.float32) for i in range(50)]


def brute_force(queries, pids, documents, depth):
    run = {}
    for number, query in enumerate(queries):
        scores = {pid: float((rows @ query).max()) for pid, rows in zip(pids, documents, strict=True)}
        best = sorted(scores.items(), key=lambda entry: (entry[1], entry[0]), reverse=True)[:depth]
        run[f"q{number}"] = dict(best)
    return run


@pytest.mark.parametrize("block", [1, 7, 50])
@pytest.mark.parametrize("depth", [1, 10, 49, 1_000])
@pytest.mark.parametrize("at_once", [1, 150, 2**22])
def test_blocks_give_what_brute_force_gives(corpus, monkeypatch, block, depth, at_once):
    monkeypatch.setattr(search, "DEPTH", depth)
    monkeypatch.setattr(search, "SCORES_AT_ONCE", at_once)
    queries, pids, documents = corpus
    exact = ExactSearch(pids, len(queries))
    for first in range(0, 50, block):
        part = documents[first : first + block]
        counts = np.array([len(rows) for rows in part])
        exact.add_vectors(queries, pids[first : first + block], np.concatenate(part), counts)
        assert all(len(scores) <= depth for scores, _ in exact.best)  # memory follows the block, not the corpus
    run = exact.run([f"q{i}" for i in range(6)])
    expected = brute_force(queries, pids, documents, depth)
    assert run == expected
    assert [list(scores) for scores in run.values()] == [list(scores) for scores in expected.values()]


def trec_eval_order(scores: dict[str, float]) -> list[str]:
    """The order that trec_eval gives: the one document that it is told to be relevant has reciprocal rank 1 / rank."""
    qrels = {pid: {pid: 1} for pid in scores}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(dict.fromkeys(scores, scores))
    return sorted(scores, key=lambda pid: -found[pid]["recip_rank"])


def test_the_order_is_that_of_trec_eval_on_2000_random_runs():
    """Scores tie often, some only in 32 bits; ids beyond ASCII order by their bytes."""
    generator = np.random.default_rng(0)
    names = ["p10", "p9", "p1", "é", "z", "Z", "日", "😀", "", "p", "a b", "-1"]
    values = np.array([0.0, -0.0, 1.0, 1 + 1e-9, 1 + 1e-6, -2.5, 0.1, 1e-45, 3e38])
    for _ in range(2_000):
        pids = list(generator.permutation(names)[: generator.integers(1, len(names) + 1)])
        scores = {str(pid): float(score) for pid, score in zip(pids, generator.choice(values, len(pids)), strict=True)}
        order = trec_eval_order(scores)
        assert trec_order(scores) == order
        exact = ExactSearch(list(scores), 1)
        for part in np.array_split(np.arange(len(scores)), 2):
            block = [list(scores)[i] for i in part]
            exact.add_scores(block, np.array([[scores[pid] for pid in block]], dtype=np.float32))
        assert list(exact.run(["q"])["q"]) == order


def test_reranking_leaves_out_documents_that_are_no_candidates():
    candidates = {"q": {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}, "nothing new": {"a": 2.0, "b": 1.0}}
    scores = {"q": {"z": 9.0, "c": 0.5, "b": 0.25, "y": -9.0}, "nothing new": {"z": 9.0}, "no query": {"a": 1.0}}
    assert rerank_order(candidates, scores) == {
        "q": {"c": 0.5, "b": 0.25, "a": -0.75, "d": -1.75},
        "nothing new": {"a": -1.0, "b": -2.0},
    }


def test_reciprocal_ranks_add_up():
    first, second = {"q": {"a": 9.0, "b": 8.0, "c": 7.0}}, {"q": {"c": 0.2, "a": 0.1}}
    fused = reciprocal_rank_fusion([first, second])["q"]
    assert fused == pytest.approx({"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62})
    assert list(fused) == ["a", "c", "b"]
    assert reciprocal_rank_fusion([first, {}], k=1)["q"] == pytest.approx({"a": 1 / 2, "b": 1 / 3, "c": 1 / 4})
    assert list(reciprocal_rank_fusion([{"q": {"a": 1.0, "c": 1.0, "b": 1.0}}])["q"]) == ["c", "b", "a"]


def test_scores_are_scaled_per_query_before_they_are_weighed():
    ours = {"q": {"a": 0.9, "b": 0.7, "c": 0.5}, "only ours": {"a": 2.0, "b": 1.0}}
    theirs = {"q": {"c": 30.0, "d": 10.0}, "no words known": {"a": 0.0, "b": 0.0}}
    fused = weighted_fusion(ours, theirs, 0.75)
    assert fused["q"] == pytest.approx({"a": 0.75, "b": 0.375, "c": 0.25, "d": 0.0})
    assert fused["only ours"] == pytest.approx({"a": 0.75, "b": 0.0})
    assert fused["no words known"] == {"b": 0.0, "a": 0.0}


def test_scores_are_standardized_per_query_and_a_document_that_is_not_ranked_counts_as_the_last():
    """The mean of 1, 2, 3 is 2 and their deviation sqrt(2 / 3); those of 10, 30 are 20 and 10."""
    ours = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}, "only ours": {"a": 2.0, "b": 1.0}}
    theirs = {"q": {"c": 30.0, "d": 10.0}, "no words known": {"a": 0.0, "b": 0.0}}
    fused, step = standardized_fusion(ours, theirs), 1.5**0.5
    assert fused["q"] == pytest.approx({"a": step - 1, "b": -1, "c": 1 - step, "d": -1 - step})
    assert list(fused["q"]) == ["a", "c", "b", "d"]
    assert fused["only ours"] == pytest.approx({"a": 1.0, "b": -1.0})
    assert fused["no words known"] == {"b": 0.0, "a": 0.0}
    moved = {"q": {pid: 100 * score - 7 for pid, score in ours["q"].items()}}
    assert standardized_fusion(moved, theirs)["q"] == pytest.approx(fused["q"])


def test_the_weight_is_the_best_on_the_grid():
    """One query needs weight >= 0.35, the other <= 0.65; between them all weights are perfect, and 0.5 is chosen."""
    ours = {"q": {"a": 1.0, "b": 0.5, "c": 0.0}, "r": {"a": 1.0, "b": 0.0, "c": 0.55}}
    theirs = {"q": {"a": 0.8, "b": 1.0, "c": 0.0}, "r": {"a": 0.0, "b": 0.0, "c": 1.0}}
    assert choose_weight(ours, theirs, {"q": {"a": 1}, "r": {"c": 1}}) == (0.5, 1.0)
    assert choose_weight(ours, theirs, {"q": {"a": 1}, "r": {"a": 1}})[0] == 0.7
    weight, ndcg = choose_weight({"q": {"a": 1.0, "b": 0.0}}, {"q": {"a": 0.0, "b": 1.0}}, {"q": {"a": 1}})
    assert (weight, ndcg) == (0.55, 1.0)


def test_a_fusion_holds_no_more_documents_than_a_run_may(monkeypatch):
    monkeypatch.setattr(search, "DEPTH", 2)
    ours, theirs = {"q": {"a": 1.0, "b": 0.5}}, {"q": {"c": 1.0, "d": 0.2}}
    assert list(reciprocal_rank_fusion([ours, theirs])["q"]) == ["c", "a"]
    assert list(weighted_fusion(ours, theirs, 0.4)["q"]) == ["c", "a"]
    assert sorted(standardized_fusion(ours, theirs)["q"]) == ["a", "c"]
