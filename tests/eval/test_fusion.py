import pytest

from m2bert.eval import search as fusion
from m2bert.eval.search import choose_weight, reciprocal_rank_fusion, rerank_order, trec_order, weighted_fusion


def test_reciprocal_ranks_add_up():
    first, second = {"q": {"a": 9.0, "b": 8.0, "c": 7.0}}, {"q": {"c": 0.2, "a": 0.1}}
    fused = reciprocal_rank_fusion([first, second])["q"]
    assert fused == pytest.approx({"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62})
    assert list(fused) == ["a", "c", "b"]
    assert reciprocal_rank_fusion([first, {}], k=1)["q"] == pytest.approx({"a": 1 / 2, "b": 1 / 3, "c": 1 / 4})


def test_ranks_follow_trec_order_where_scores_are_equal():
    assert list(reciprocal_rank_fusion([{"q": {"a": 1.0, "c": 1.0, "b": 1.0}}])["q"]) == ["c", "b", "a"]


def test_scores_are_scaled_within_the_query_before_they_are_weighed():
    ours = {"q": {"a": 0.9, "b": 0.7, "c": 0.5}, "only ours": {"a": 2.0, "b": 1.0}}
    theirs = {"q": {"c": 30.0, "d": 10.0}, "no words known": {"a": 0.0, "b": 0.0}}
    fused = weighted_fusion(ours, theirs, 0.75)
    assert fused["q"] == pytest.approx({"a": 0.75, "b": 0.375, "c": 0.25, "d": 0.0})
    assert fused["only ours"] == pytest.approx({"a": 0.75, "b": 0.0})
    assert fused["no words known"] == {"b": 0.0, "a": 0.0}
    for weight in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"weight={weight}"):
            weighted_fusion(ours, theirs, weight)


def test_the_ends_of_the_scale_are_the_two_systems():
    ours, theirs = {"q": {"a": 3.0, "b": 1.0, "c": 2.0}}, {"q": {"a": 1.0, "b": 5.0, "c": 2.0}}
    assert list(weighted_fusion(ours, theirs, 1)["q"]) == trec_order(ours["q"])
    assert list(weighted_fusion(ours, theirs, 0)["q"]) == trec_order(theirs["q"])


def test_the_weight_is_the_best_on_the_grid():
    """One query needs weight >= 0.35, the other <= 0.65; between them all weights are perfect, and 0.5 is chosen."""
    ours = {"q": {"a": 1.0, "b": 0.5, "c": 0.0}, "r": {"a": 1.0, "b": 0.0, "c": 0.55}}
    theirs = {"q": {"a": 0.8, "b": 1.0, "c": 0.0}, "r": {"a": 0.0, "b": 0.0, "c": 1.0}}
    qrels = {"q": {"a": 1}, "r": {"c": 1}}
    assert choose_weight(ours, theirs, qrels) == (0.5, 1.0)
    assert choose_weight(ours, theirs, {"q": {"a": 1}, "r": {"a": 1}})[0] == 0.7
    weight, ndcg = choose_weight({"q": {"a": 1.0, "b": 0.0}}, {"q": {"a": 0.0, "b": 1.0}}, {"q": {"a": 1}})
    assert (weight, ndcg) == (0.55, 1.0)


def test_reranked_candidates_come_first_and_the_others_keep_their_order():
    candidates = {"q": {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, "r": {"a": 1.0}}
    run = rerank_order(candidates, {"q": {"a": -0.5, "b": 0.5}})
    assert trec_order(run["q"]) == ["b", "a", "c", "d"]
    assert run["q"]["a"] == -0.5
    assert trec_order(run["r"]) == ["a"]


def test_a_fusion_holds_no_more_documents_than_a_run_may(monkeypatch):
    monkeypatch.setattr(fusion, "DEPTH", 2)
    ours, theirs = {"q": {"a": 1.0, "b": 0.5}}, {"q": {"c": 1.0, "d": 0.2}}
    assert list(reciprocal_rank_fusion([ours, theirs])["q"]) == ["c", "a"]
    assert list(weighted_fusion(ours, theirs, 0.4)["q"]) == ["c", "a"]
