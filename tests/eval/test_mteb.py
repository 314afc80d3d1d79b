"""mteb and this package score the same: our tasks and models there, its tasks and models here."""

import logging

import numpy as np
import pytest

mteb = pytest.importorskip("mteb")

from datasets import Dataset  # noqa: E402
from mteb._create_dataloaders import create_dataloader  # noqa: E402
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores  # noqa: E402
from mteb.abstasks import AbsTaskRetrieval  # noqa: E402
from mteb.types import PromptType  # noqa: E402

from m2bert.eval.encoders.mteb_model import MtebEncoder, MtebRanker, load_mteb_model, loader_of  # noqa: E402
from m2bert.eval.encoders.policies import parse_policy  # noqa: E402
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder  # noqa: E402
from m2bert.eval.mteb_adapter import locov1 as mteb_locov1  # noqa: E402
from m2bert.eval.mteb_adapter.ours import EncoderForMteb, RankerForMteb  # noqa: E402
from m2bert.eval.rankers import Bm25Ranker, DenseRanker  # noqa: E402
from m2bert.eval.search import score_metrics, score_ranking  # noqa: E402
from m2bert.eval.tasks import from_mteb as mteb_tasks  # noqa: E402
from m2bert.eval.tasks.from_hub import LOCOV1_TASKS  # noqa: E402
from m2bert.eval.tasks.from_mteb import document_text, from_mteb, metadata_of, query_text, split_data, to_mteb  # noqa: E402
from m2bert.eval.tasks.locov1 import RetrievalTask, load_task  # noqa: E402

ROUNDED = 5.001e-6  # mteb prints five decimals


@pytest.fixture
def task(tiny_data):
    return load_task(tiny_data, "tiny", "test")


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return SentenceTransformerEncoder(tiny_model)


def score_there(model, task, metric="ndcg_at_10"):
    """mteb's own score of a model on a task."""
    task = to_mteb(task) if isinstance(task, RetrievalTask) else task
    (result,) = mteb.evaluate(model, [task], cache=None, co2_tracker=False, show_progress_bar=False).task_results
    (scores,) = next(iter(result.scores.values()))
    return scores[metric]


def score_here(ranker, task):
    scores = score_ranking(ranker.rank(task), task.qrels)
    return sum(scores.values()) / len(scores)


def test_metrics_of_one_ranking_are_equal():
    """Grades, ties, unjudged documents, queries of several answers."""
    generator = np.random.default_rng(0)
    qrels = {f"q{i}": {f"d{j}": int(generator.integers(0, 4)) for j in range(i, i + 9)} for i in range(40)}
    run = {qid: {f"d{j}": float(generator.integers(0, 6)) for j in range(60)} for qid in qrels}
    theirs = calculate_retrieval_scores(run, qrels, [1, 10, 100]).all_scores
    ours = score_metrics(run, qrels)
    for name, column in (("ndcg_at_1", "ndcg_cut_1"), ("ndcg_at_10", "ndcg_cut_10"), ("recall_at_100", "recall_100")):
        assert ours[name] == pytest.approx({qid: theirs[qid][column] for qid in qrels}, abs=1e-9)


@pytest.mark.parametrize("policy", ["truncate", "chunk-average:tokens=8"])
def test_a_sentence_transformer_scores_the_same_here_and_there(task, encoder, policy):
    policy = parse_policy(policy)
    ours = score_here(DenseRanker(encoder, policy), task)
    assert score_there(EncoderForMteb(encoder, policy), task) == pytest.approx(ours, abs=ROUNDED)
    if policy.spec == "truncate":
        assert score_there(encoder.model, task) == pytest.approx(ours, abs=ROUNDED)


@pytest.mark.parametrize("policy", ["truncate", "best-chunk:tokens=8"])
def test_our_rankers_score_the_same_there(task, encoder, policy):
    for ranker in (Bm25Ranker(), DenseRanker(encoder, parse_policy(policy))):
        assert score_there(RankerForMteb(ranker, "ours"), task) == pytest.approx(score_here(ranker, task), abs=ROUNDED)


def test_mtebs_bm25_scores_the_same_here(task):
    pytest.importorskip("Stemmer")
    ranker = load_mteb_model("mteb/baseline-bm25s")
    assert isinstance(ranker, MtebRanker)
    assert ranker.is_lexical
    assert score_here(ranker, task) == pytest.approx(score_there(ranker.model, task), abs=ROUNDED)
    candidates = {qid: {"p0": 3.0, "p1": 2.0, "p2": 1.0} for qid in task.queries}
    reranked = ranker.rerank(task, candidates, 2)
    assert max(reranked["q1"], key=reranked["q1"].get) == "p1"
    assert all(min(scores, key=scores.get) == "p2" for scores in reranked.values())  # beyond the depth


def test_an_encoder_of_mteb_scores_the_same_here(task):
    encoder = load_mteb_model("mteb/baseline-random-encoder")
    assert isinstance(encoder, MtebEncoder)
    assert (encoder.dimensions, encoder.max_tokens) == (32, None)
    assert score_here(DenseRanker(encoder), task) == pytest.approx(score_there(encoder.model, task), abs=ROUNDED)
    rows = encoder.encode(["one", "two", "one"], "query")
    assert rows.dtype == np.float32
    assert np.array_equal(rows[0], rows[2])
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 1], abs=1e-6)
    assert encoder.encode([], "query").shape == (0, 32)
    with pytest.raises(ValueError, match="cannot cut texts at 8 tokens"):
        encoder.encode(["one"], "query", 8)


def test_models_are_given_what_mteb_gives_them(task):
    data = split_data(task)
    for kind, texts, prompt in (
        ("queries", task.queries, PromptType.query),
        ("corpus", task.documents, PromptType.document),
    ):
        theirs = create_dataloader(data[kind], task_metadata=metadata_of(task), prompt_type=prompt)
        for ours, batch in zip(loader_of(list(texts.values()), prompt.value), theirs, strict=True):
            assert {key: ours[key] for key in batch if key not in ("id", "title")} == {
                key: value for key, value in batch.items() if key not in ("id", "title")
            }


@pytest.mark.parametrize(
    "row",
    [
        {"id": "1", "title": "A title", "text": " a text "},
        {"id": "1", "title": "", "text": "a text\n"},
        {"id": "1", "text": "a text"},
    ],
)
def test_documents_read_as_mteb_reads_them(row, task):
    loader = create_dataloader(
        Dataset.from_list([row]), task_metadata=metadata_of(task), prompt_type=PromptType.document
    )
    assert document_text(row) == next(iter(loader))["text"][0]


def test_queries_read_as_mteb_reads_them(task):
    row = {"id": "1", "text": "a query", "instruction": "and what to do"}
    loader = create_dataloader(Dataset.from_list([row]), task_metadata=metadata_of(task), prompt_type=PromptType.query)
    assert query_text(row) == next(iter(loader))["text"][0]
    with pytest.raises(ValueError, match="query '2' is a conversation"):
        query_text({"id": "2", "text": ["hello", "and?"]})


class Foreign(AbsTaskRetrieval):
    """A task in the form of mteb's older ones, in two languages and two splits."""

    metadata = metadata_of(RetrievalTask("Foreign", "test", {}, {}, {}, "abc", source="org/foreign")).model_copy(
        update={"eval_splits": ["test_a", "test_b"], "eval_langs": {"en": ["eng-Latn"], "de": ["deu-Latn"]}}
    )

    def load_data(self, num_proc=None, **kwargs):
        corpus = {"d0": {"title": "Boats", "text": "and sails "}, "d1": {"title": "", "text": "walls"}}
        queries = {"q0": "sails", "q1": "nothing", "q2": "gone", "q3": "nobody asked"}
        judged = {"q0": {"d0": 3, "d1": 0, "d9": 1}, "q1": {"d1": 0}, "q2": {"d9": 1}}
        everywhere = {"en": {}, "de": {}}
        self.corpus, self.queries, self.relevant_docs = ({key: {} for key in everywhere} for _ in range(3))
        for subset in everywhere:
            for split in ("test_a", "test_b"):
                self.corpus[subset][split], self.queries[subset][split] = dict(corpus), dict(queries)
                self.relevant_docs[subset][split] = {qid: dict(answers) for qid, answers in judged.items()}
        self.data_loaded = True


def test_tasks_of_mteb_are_read(monkeypatch, caplog):
    monkeypatch.setattr(mteb_tasks, "mteb_tasks", lambda names: [Foreign()])
    with caplog.at_level(logging.WARNING, "m2bert.eval"):
        tasks = from_mteb(["Foreign"])
    assert [(task.name, task.split) for task in tasks] == [
        (f"Foreign ({language})", f"test_{split}") for language in ("en", "de") for split in "ab"
    ]
    assert tasks[0].documents == {"d0": "Boats and sails", "d1": "walls"}
    assert tasks[0].queries == {"q0": "sails"}
    assert tasks[0].qrels == {"q0": {"d0": 3, "d1": 0}}
    assert (tasks[0].source, tasks[0].revision) == ("org/foreign", "abc")
    assert "2 queries have no relevant document there" in caplog.text
    assert [task.split for task in from_mteb(["Foreign"], "test_b")] == ["test_b", "test_b"]
    with pytest.raises(ValueError, match="'Foreign' has no split 'dev'; it has test_a, test_b"):
        from_mteb(["Foreign"], "dev")


def test_there_and_back(task, monkeypatch):
    monkeypatch.setattr(mteb_tasks, "mteb_tasks", lambda names: [to_mteb(task)])
    (back,) = from_mteb(["tiny"])
    assert (back.queries, back.documents, back.qrels) == (task.queries, task.documents, task.qrels)
    assert back.fingerprint == task.fingerprint == back.revision


def test_data_that_cannot_be_loaded_are_named(task, monkeypatch):
    class Gone(type(to_mteb(task))):
        def load_data(self, num_proc=None, **kwargs):
            raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(mteb_tasks, "mteb_tasks", lambda names: [Gone()])
    with pytest.raises(ValueError, match="the data of mteb task 'tiny' cannot be loaded: ConnectionError: no network"):
        from_mteb(["tiny"])


def test_locov1_as_classes_of_mteb(task, monkeypatch):
    assert tuple(mteb_locov1.LOCOV1_CLASSES) == LOCOV1_TASKS
    asked = []
    monkeypatch.setattr(mteb_locov1, "load_hub_tasks", lambda *arguments: asked.append(arguments) or [task])
    score = score_there(RankerForMteb(Bm25Ranker(), "bm25"), mteb_locov1.LoCoV1QMSum())
    assert score == pytest.approx(score_here(Bm25Ranker(), task), abs=ROUNDED)
    assert asked == [("hazyresearch/LoCoV1", ["qmsum"], "test", "main,main")]


@pytest.mark.parametrize("known", mteb_locov1.LOCOV1_CLASSES.values(), ids=lambda known: known.task)
def test_mteb_knows_locov1_by_name_and_lacks_nothing_about_it(known):
    import mteb

    task = mteb.get_task(known.metadata.name)
    assert type(task) is known
    assert task.metadata.is_filled()
    assert (task.metadata.dataset["path"], mteb_locov1.QUERIES["path"]) == (
        "hazyresearch/LoCoV1-Documents",
        "hazyresearch/LoCoV1-Queries",
    )


def test_candidates_that_a_task_gives_are_kept_to(task, encoder):
    data = split_data(task)
    given = {"q1": ["p3", "p1"], "q2": ["p0", "p4"]}
    for ranker in (Bm25Ranker(), DenseRanker(encoder)):
        adapted = RankerForMteb(ranker, "ours")
        adapted.index(data["corpus"])
        search = {"task_metadata": metadata_of(task), "hf_split": "test", "top_ranked": given}
        run = adapted.search(data["queries"], top_k=10, **search)
        assert {qid: set(scores) for qid, scores in run.items() if scores} == {qid: set(p) for qid, p in given.items()}
        assert {len(scores) for scores in adapted.search(data["queries"], top_k=1, **search).values()} == {0, 1}
    assert max(run["q1"], key=run["q1"].get) in given["q1"]


def test_several_vectors_are_no_encoder_of_mteb(encoder):
    with pytest.raises(ValueError, match="'best-chunk' gives a document several vectors.*RankerForMteb"):
        EncoderForMteb(encoder, parse_policy("best-chunk"))


def test_models_that_mteb_does_not_have_are_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'all-minilm-l6' cannot be loaded .*sentence-transformers/all-MiniLM-L6-v2"):
        load_mteb_model("all-minilm-l6")
    with pytest.raises(ValueError, match="compares pairs of texts"):
        load_mteb_model("mteb/baseline-random-cross-encoder")

    def lacking(name):
        raise ImportError("pip install mteb[bm25s]")

    monkeypatch.setattr(mteb, "get_model", lacking)
    with pytest.raises(ValueError, match=r"'mteb/baseline-bb25' needs a package .*: pip install mteb\[bm25s\]"):
        load_mteb_model("mteb/baseline-bb25")


@pytest.mark.slow
def test_qmsum(qmsum_data, encoder):
    """mteb stems, we do not: its BM25 is no copy of ours, but each scores the same on both sides."""
    task = load_task(qmsum_data, "qmsum", "test")
    bm25 = load_mteb_model("mteb/baseline-bm25s")
    for model, ranker in (
        (bm25.model, bm25),
        (RankerForMteb(Bm25Ranker(), "bm25"), Bm25Ranker()),
        (encoder.model, DenseRanker(encoder)),
    ):
        assert score_there(model, task) == pytest.approx(score_here(ranker, task), abs=ROUNDED)
