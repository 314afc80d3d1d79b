"""Exact search against a brute-force oracle: scores are small exact numbers, so equal ones are really equal."""

import numpy as np
import pytest
import pytrec_eval

from m2bert.eval import search
from m2bert.eval.search import ExactSearch, check_finite, rank_vectors, trec_order
from m2bert.eval.tasks.schema import make_task


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
        exact.add_vectors(
            queries, pids[first : first + block], np.concatenate(part), np.array([len(rows) for rows in part])
        )
    run = exact.run([f"q{i}" for i in range(6)])
    expected = brute_force(queries, pids, documents, depth)
    assert run == expected
    assert [list(scores) for scores in run.values()] == [list(scores) for scores in expected.values()]


def test_scores_survive_the_keys_exactly():
    scores = np.array([[0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 0.1, -0.1]], dtype=np.float32)
    pids = list("abcdefgh")
    exact = ExactSearch(pids, 1)
    exact.add_scores(pids, scores)
    run = exact.run(["q"])["q"]
    assert {pid: np.float32(score) for pid, score in run.items()} == dict(zip(pids, scores[0], strict=True))
    assert list(run) == ["e", "g", "c", "b", "a", "d", "h", "f"]  # both zeros are equal: by descending id


def test_the_order_is_that_of_trec_eval():
    """1 + 1e-9 is 1 in 32 bits; ids beyond ASCII order by their bytes."""
    scores = {"p10": 1 + 1e-9, "p9": 1.0, "é": 1.0, "z": 0.5, "p1": 2.0}
    order = trec_order(scores)
    assert order == ["p1", "é", "p9", "p10", "z"]
    for rank, pid in enumerate(order, start=1):
        evaluator = pytrec_eval.RelevanceEvaluator({"q": {pid: 1}}, {"recip_rank"})
        assert evaluator.evaluate({"q": scores})["q"]["recip_rank"] == pytest.approx(1 / rank)


def test_memory_follows_the_block_not_the_corpus(monkeypatch):
    monkeypatch.setattr(search, "DEPTH", 10)
    exact = ExactSearch([f"p{i}" for i in range(10_000)], 3)
    for first in range(0, 10_000, 100):
        pids = [f"p{i}" for i in range(first, first + 100)]
        exact.add_scores(pids, np.arange(first, first + 100, dtype=np.float32).repeat(3).reshape(-1, 3).T)
        assert exact.keys.shape == (3, 10)
    assert list(exact.run(list("abc"))["b"]) == [f"p{i}" for i in range(9_999, 9_989, -1)]


def test_vectors_that_are_not_finite_name_their_text():
    documents = [{"pid": "p0", "passage": "a"}, {"pid": "p1", "passage": "b"}]
    task = make_task("t", "test", [{"qid": "q0", "query": "x", "answer_pids": ["p0"]}], documents)
    good, bad = np.eye(2, dtype=np.float32), np.array([[1, 0], [np.inf, 0]], dtype=np.float32)
    assert rank_vectors(task, good[:1], good) == {"q0": {"p0": 1.0, "p1": 0.0}}
    with pytest.raises(ValueError, match=r"vector of 'p1' is not finite \(1 of 2\)"):
        rank_vectors(task, good[:1], bad)
    with pytest.raises(ValueError, match="vector of 'q0' is not finite"):
        rank_vectors(task, bad[1:], good)
    with pytest.raises(ValueError, match="'b' is not finite"):
        check_finite(["a", "b"], np.array([[0.0], [np.nan]]))
