"""mteb and this package score the same: our tasks and encoders there, its tasks and models here."""

from unittest.mock import Mock

import numpy as np
import pytest

mteb = pytest.importorskip("mteb")
# ruff: noqa: E402
from datasets import Dataset, DatasetDict
from mteb._create_dataloaders import create_dataloader
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType

from m2bert.eval import from_mteb as adapter
from m2bert.eval import mteb_export
from m2bert.eval.encoders.policies import parse_policy
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.eval.from_mteb import from_mteb, load_mteb_model, metadata_of, mteb_tasks
from m2bert.eval.mteb_export import EncoderForMteb, run_tasks, to_mteb
from m2bert.eval.rankers import DenseRanker
from m2bert.eval.report.tables import paper_table, read_paper
from m2bert.eval.search import score_metrics, score_ranking
from m2bert.eval.tasks.from_hub import LOCOV1_TASKS
from m2bert.eval.tasks.schema import RetrievalTask, load_task

ROUNDED = 5.001e-6  # mteb prints five decimals
TRUNCATE = parse_policy("truncate")
RECORD = {"kind", "system", "encoder", "policy", "task", "split", "metric", "value", "other_scores", "group",
          "revision", "versions", "date", "model_fingerprint"}  # fmt: skip


@pytest.fixture
def task(tiny_data):
    return load_task(tiny_data, "tiny", "test")


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return SentenceTransformerEncoder(tiny_model)


def score_there(model, task, metric="ndcg_at_10"):
    """mteb's own score of a model on a task, on its first split and subset."""
    task = to_mteb(task) if isinstance(task, RetrievalTask) else task
    (result,) = mteb.evaluate(model, [task], cache=None, co2_tracker=False, show_progress_bar=False).task_results
    scores, *_ = next(iter(result.scores.values()))  # of the first subset
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


class TestOursThere:
    @pytest.mark.parametrize("policy", ["truncate", "chunk-average:tokens=8"])
    def test_an_encoder_scores_the_same(self, task, encoder, policy):
        policy = parse_policy(policy)
        ours = score_here(DenseRanker(encoder, policy), task)
        assert score_there(EncoderForMteb(encoder, policy), task) == pytest.approx(ours, abs=ROUNDED)
        with pytest.raises(ValueError, match="'best-chunk' gives a text several vectors"):
            EncoderForMteb(encoder, parse_policy("best-chunk"))
        if policy == TRUNCATE:
            assert score_there(encoder.model, task) == pytest.approx(ours, abs=ROUNDED)

    def test_locov1_is_read_from_the_hub(self, task, encoder, monkeypatch):
        asked = []
        monkeypatch.setattr(mteb_export, "load_hub_tasks", lambda *arguments: asked.append(arguments) or [task])
        score = score_there(EncoderForMteb(encoder), mteb.get_task("LoCoV1QMSum"))
        assert score == pytest.approx(score_here(DenseRanker(encoder), task), abs=ROUNDED)
        assert asked == [("hazyresearch/LoCoV1", ["qmsum"], "test", "main,main")]

    def test_mteb_knows_locov1_by_name_and_lacks_nothing_about_it(self):
        tasks = read_paper()["locov1"]["tasks"]
        assert tuple(tasks) == LOCOV1_TASKS
        for column, about in tasks.items():
            task = mteb.get_task(f"LoCoV1{about['name']}")
            assert (task.task, type(task).__name__) == (column, task.metadata.name)
            assert task.metadata.is_filled()
            assert task.metadata.dataset["path"] == "hazyresearch/LoCoV1-Documents"


class TestModelsHere:
    def test_bm25_scores_the_same(self, task):
        pytest.importorskip("Stemmer")
        ranker = load_mteb_model("mteb/baseline-bm25s")
        assert isinstance(ranker, adapter.MtebRanker)
        assert ranker.is_lexical
        assert score_here(ranker, task) == pytest.approx(score_there(ranker.model, task), abs=ROUNDED)
        candidates = {qid: {"p0": 3.0, "p1": 2.0, "p2": 1.0} for qid in task.queries}
        reranked = ranker.rerank(task, candidates, 2)
        assert max(reranked["q1"], key=reranked["q1"].get) == "p1"
        assert all(min(scores, key=scores.get) == "p2" for scores in reranked.values())  # beyond the depth

    def test_an_encoder_scores_the_same(self, task):
        encoder = load_mteb_model("mteb/baseline-random-encoder")
        assert isinstance(encoder, adapter.MtebEncoder)
        assert (encoder.dimensions, encoder.max_tokens) == (32, None)
        assert score_here(DenseRanker(encoder), task) == pytest.approx(score_there(encoder.model, task), abs=ROUNDED)
        rows = encoder.encode(["one", "two", "one"], "query")
        assert rows.dtype == np.float32
        assert np.array_equal(rows[0], rows[2])
        assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 1], abs=1e-6)
        assert encoder.encode([], "query").shape == (0, 32)
        with pytest.raises(ValueError, match="cannot cut texts at 8 tokens"):
            encoder.encode(["one"], "query", 8)

    def test_they_are_given_what_mteb_gives_them(self, task):
        data = adapter.split_data(task)
        for kind, texts, prompt in (
            ("queries", task.queries, PromptType.query),
            ("corpus", task.documents, PromptType.document),
        ):
            theirs = create_dataloader(data[kind], task_metadata=metadata_of(task), prompt_type=prompt)
            for ours, batch in zip(adapter.loader_of(list(texts.values()), prompt.value), theirs, strict=True):
                columns = batch.keys() - {"id", "title"}
                assert {key: ours[key] for key in columns} == {key: batch[key] for key in columns}

    def test_those_that_mteb_does_not_have_are_named(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for name, message in (
            ("all-minilm-l6", "'all-minilm-l6' cannot be loaded .*sentence-transformers/all-MiniLM-L6"),
            ("mteb/baseline-random-cross-encoder", "compares pairs of texts"),
        ):
            with pytest.raises(ValueError, match=message):
                load_mteb_model(name)


class Foreign(AbsTaskRetrieval):
    """A task in the form of mteb's older ones, in two languages and two splits."""

    metadata = metadata_of(RetrievalTask("Foreign", "test", {}, {}, {}, "abc", source="org/foreign")).model_copy(
        update={"eval_splits": ["test_a", "test_b"], "eval_langs": {"en": ["eng-Latn"], "de": ["deu-Latn"]}}
    )
    corpus_rows = {"d0": {"title": "Boats", "text": "and sails "}, "d1": {"title": "", "text": "walls"}}
    query_rows = {"q0": "sails", "q1": "nothing", "q2": "gone", "q3": "nobody asked"}
    judged = {"q0": {"d0": 3, "d1": -1, "d9": 1}, "q1": {"d1": 0}, "q2": {"d9": 1}}

    def load_data(self, num_proc=None, **kwargs):
        parts = (self.corpus_rows, self.query_rows, self.judged)
        self.corpus, self.queries, self.relevant_docs = (
            {subset: {split: dict(part) for split in ("test_a", "test_b")} for subset in ("en", "de")} for part in parts
        )
        self.data_loaded = True


class TestTasksHere:
    @pytest.fixture
    def knows(self, monkeypatch):
        """Let mteb have one task."""
        return lambda task: monkeypatch.setattr(adapter, "mteb_tasks", lambda names: [task])

    def test_they_are_read(self, knows, caplog):
        knows(Foreign())
        tasks = from_mteb(["Foreign"])
        assert [(task.name, task.split) for task in tasks] == [
            (f"Foreign ({language})", f"test_{split}") for language in ("en", "de") for split in "ab"
        ]
        assert tasks[0].documents == {"d0": "Boats and sails", "d1": "walls"}
        assert tasks[0].queries == {"q0": "sails", "q1": "nothing", "q2": "gone"}
        assert tasks[0].qrels == Foreign.judged
        assert (tasks[0].source, tasks[0].revision) == ("org/foreign", "abc")
        assert "2 of 3 queries are answered by no document there" in caplog.text
        assert "1 of 3 judged documents are not there to be found" in caplog.text
        assert [task.split for task in from_mteb(["Foreign"], "test_b")] == ["test_b", "test_b"]
        with pytest.raises(ValueError, match="'Foreign' has no split 'dev'; it has test_a, test_b"):
            from_mteb(["Foreign"], "dev")

    def test_scores_are_mtebs(self, knows, encoder):
        """A query with no judgment is left out; grades below 1 and documents that are not there count."""
        knows(Foreign())
        ours = score_here(DenseRanker(encoder), from_mteb(["Foreign"], "test_a")[0])
        assert score_there(encoder.model, Foreign()) == pytest.approx(ours, abs=ROUNDED)

    def test_there_and_back(self, task, knows):
        knows(to_mteb(task))
        (back,) = from_mteb(["tiny"])
        assert (back.queries, back.documents, back.qrels) == (task.queries, task.documents, task.qrels)
        assert back.fingerprint == task.fingerprint == back.revision

    def no_network(self, num_proc=None, **kwargs):
        raise ConnectionError("no\nnetwork")

    @pytest.mark.parametrize(
        ("attribute", "value", "message"),
        [
            ("corpus_rows", {"d0": {"title": "a title", "text": None}}, "documents: id 'd0' has None"),
            ("corpus_rows", {"d\0": {"title": "", "text": "a"}}, "id 'd.x00' has 'a';.*without null characters"),
            ("judged", {"q0": {"d9": 1}}, "no document answers any query; 'd9' is judged, 'd0' is a document"),
            ("judged", {"q0": {"d0": 0.5}}, "'q0' judges document 'd0' as 0.5; grades must be whole numbers"),
            ("judged", {}, "no judged queries"),
            ("load_data", no_network, "data of mteb task 'Foreign' cannot be loaded: ConnectionError: no network"),
        ],
    )
    def test_data_that_cannot_be_used_are_named(self, knows, monkeypatch, attribute, value, message):
        monkeypatch.setattr(Foreign, attribute, value)
        knows(Foreign())
        with pytest.raises(ValueError, match=message):
            from_mteb(["Foreign"])

    @pytest.mark.parametrize(
        ("kind", "row"),
        [
            ("document", {"title": "A title", "text": " a text "}),
            ("document", {"title": "", "text": "a\n"}),
            ("query", {"text": " a query\n"}),
            ("query", {"text": "a query", "instruction": "do it"}),
        ],
    )
    def test_texts_are_those_that_mteb_reads(self, kind, row, task):
        rows = Dataset.from_list([{"id": "1", **row}])
        loader = create_dataloader(rows, task_metadata=metadata_of(task), prompt_type=PromptType(kind))
        read = adapter.document_text if kind == "document" else adapter.query_text
        assert read({"id": "1", **row}) == next(iter(loader))["text"][0]


class TestNames:
    def test_the_papers_groups_name_tasks_of_mteb(self):
        assert len(adapter.PAPER_GROUPS["table-9"]) == 37
        for group, names in adapter.PAPER_GROUPS.items():
            assert [task.metadata.name for task in mteb_tasks([group])] == list(names)
        for group, kind in (("table-14", "Retrieval"), ("table-18", "Classification"), ("table-21", "Reranking")):
            assert {task.metadata.type for task in mteb_tasks([group])} == {kind}

    def test_english_subsets_are_taken(self):
        tasks = mteb_tasks(["table-10", "STS17", "MIRACLRetrieval", "GermanQuAD-Retrieval"])
        assert [task.hf_subsets for task in tasks] == [["en"], ["en-en"], ["en"], ["default"]]

    def test_benchmarks_expand_and_each_task_comes_once(self):
        names = [task.metadata.name for task in mteb_tasks(["LongEmbed", "LEMBQMSumRetrieval", "LongEmbed"])]
        assert len(names) == len(set(names)) == 6
        for wrong, near in (("longembed", "LongEmbed"), ("table-23", "table-22")):
            with pytest.raises(ValueError, match=f"called '{wrong}'; .*`mteb available-tasks`.*did you mean '{near}'"):
                mteb_tasks([wrong])

    def test_what_mteb_has_to_score_itself(self):
        """ArguAna leaves each query's own document out; CQADupstack averages corpora; the rest is no retrieval."""
        names = ["ArguAna", "CQADupstackRetrieval", "STS12", "AskUbuntuDupQuestions", "NFCorpus"]
        assert [task.metadata.name for task in mteb_tasks(names) if adapter.ranked_here(task)] == ["NFCorpus"]
        with pytest.raises(ValueError, match=r"'ArguAna' \(Retrieval\) is scored by mteb itself"):
            from_mteb(["NFCorpus", "ArguAna"])


class Similarity(AbsTaskSTS):
    metadata = TaskMetadata(
        name="Similarity", description="Made for a test.", dataset={"path": "made/up", "revision": "1"}, type="STS",
        category="t2t", eval_langs=["eng-Latn"], main_score="cosine_spearman",
    )  # fmt: skip
    min_score, max_score = 0, 5
    columns = {
        "sentence1": ["apple pear", "boat sail", "stone wall", "cloud rain", "river bridge", "horse saddle"],
        "sentence2": ["apple apple", "boat sail", "cloud wall", "horse river", "river rain", "saddle horse"],
        "score": [3.0, 5.0, 2.0, 0.0, 2.5, 4.5],
    }

    def load_data(self, **kwargs):
        self.dataset, self.data_loaded = DatasetDict(test=Dataset.from_dict(self.columns)), True


class TestScoredByMteb:
    def test_records_hold_mtebs_own_scores(self, encoder):
        (record,) = run_tasks(encoder, TRUNCATE, [Similarity()], "ours")
        assert record.keys() == RECORD
        assert (record["task"], record["group"], record["system"]) == ("Similarity", "sts", "ours")
        assert record["model_fingerprint"] == encoder.fingerprint
        found = [record["value"], record["other_scores"][paper_table("22")["metric"]]]
        theirs = [score_there(encoder.model, Similarity(), name) for name in ("cosine_spearman", "cosine_pearson")]
        assert found == pytest.approx(theirs, abs=1e-5)

    def test_a_task_that_fails_is_named(self, encoder):
        task = Similarity()
        task.load_data = Mock(side_effect=ConnectionError("no\nnetwork"))
        with pytest.raises(ValueError, match="mteb task 'Similarity' failed: ConnectionError: no network"):
            run_tasks(encoder, TRUNCATE, [task], "ours")
