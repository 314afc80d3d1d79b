"""Names of mteb's tasks, and the tasks that it scores by itself."""

import pyarrow.parquet as pq
import pytest

mteb = pytest.importorskip("mteb")

from datasets import Dataset, DatasetDict  # noqa: E402
from mteb.abstasks import (  # noqa: E402
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Normalize  # noqa: E402

from m2bert.eval.encoders.policies import parse_policy  # noqa: E402
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder  # noqa: E402
from m2bert.eval.mteb_adapter.run import run_mteb, run_tasks  # noqa: E402
from m2bert.eval.report import paper  # noqa: E402
from m2bert.eval.tasks.from_mteb import from_mteb  # noqa: E402
from m2bert.eval.tasks.mteb_names import PAPER_GROUPS, mteb_tasks, ranked_here  # noqa: E402

RECORD = {"kind", "system", "encoder", "policy", "task", "split", "metric", "value", "other_scores", "group",
          "revision", "versions", "date", "model_fingerprint"}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return SentenceTransformerEncoder(tiny_model)


def about(name, kind, main_score):
    return TaskMetadata(
        name=name,
        description="Made for a test.",
        dataset={"path": "made/up", "revision": "1"},
        type=kind,
        category="t2c" if kind != "STS" else "t2t",
        eval_langs=["eng-Latn"],
        main_score=main_score,
    )


class Similarity(AbsTaskSTS):
    metadata = about("Similarity", "STS", "cosine_spearman")
    min_score, max_score = 0, 5

    def load_data(self, **kwargs):
        firsts = ["apple pear", "boat sail", "stone wall", "cloud rain", "river bridge", "horse saddle"]
        seconds = ["apple apple", "boat sail", "cloud wall", "horse river", "river rain", "saddle horse"]
        scores = [3.0, 5.0, 2.0, 0.0, 2.5, 4.5]
        rows = Dataset.from_dict({"sentence1": firsts, "sentence2": seconds, "score": scores})
        self.dataset, self.data_loaded = DatasetDict(test=rows), True


class Grouping(AbsTaskClustering):
    metadata = about("Grouping", "Clustering", "v_measure")
    max_fraction_of_documents_to_embed = None

    def load_data(self, **kwargs):
        texts = [f"{word} {other}" for word in ("apple", "boat") for other in ("pear", "sail", "stone", "wall")]
        rows = Dataset.from_dict({"sentences": texts, "labels": [0] * 4 + [1] * 4})
        self.dataset, self.data_loaded = DatasetDict(test=rows), True


class Pairs(AbsTaskPairClassification):
    metadata = about("Pairs", "PairClassification", "max_ap")

    def load_data(self, **kwargs):
        firsts = ["apple pear", "boat sail", "stone wall", "cloud rain"]
        seconds = ["apple apple", "boat sail", "cloud wall", "horse river"]
        rows = {"sentence1": [firsts], "sentence2": [seconds], "labels": [[1, 1, 0, 0]]}
        self.dataset, self.data_loaded = DatasetDict(test=Dataset.from_dict(rows)), True


def test_the_papers_groups_name_tasks_of_mteb():
    sizes = {group: len(names) for group, names in PAPER_GROUPS.items()}
    assert sizes == {"table-9": 37, "table-10": 1, "table-14": 13, "table-18": 12, "table-19": 8, "table-20": 3,
                     "table-21": 4, "table-22": 10}  # fmt: skip
    for group, names in PAPER_GROUPS.items():
        assert [task.metadata.name for task in mteb_tasks([group])] == list(names)
    kinds = {group: {task.metadata.type for task in mteb_tasks([group])} for group in PAPER_GROUPS}
    assert kinds["table-14"] == {"Retrieval"}
    assert kinds["table-18"] == {"Classification"}
    assert kinds["table-21"] == {"Reranking"}


def test_english_subsets_are_taken():
    subsets = {task.metadata.name: task.hf_subsets for task in mteb_tasks(["table-10", "STS17", "MIRACLRetrieval"])}
    assert subsets == {"MultiLongDocRetrieval": ["en"], "STS17": ["en-en"], "MIRACLRetrieval": ["en"]}
    (german,) = mteb_tasks(["GermanQuAD-Retrieval"])
    assert german.hf_subsets == ["default"]


def test_benchmarks_expand_and_each_task_comes_once():
    names = [task.metadata.name for task in mteb_tasks(["LongEmbed", "LEMBQMSumRetrieval", "LongEmbed"])]
    assert len(names) == len(set(names)) == 6
    for wrong, nearest in (("longembed", "LongEmbed"), ("table-23", "table-22")):
        with pytest.raises(ValueError, match=f"called '{wrong}'; .*`mteb available-tasks`.*did you mean '{nearest}'"):
            mteb_tasks([wrong])


def test_what_mteb_has_to_score_itself():
    """ArguAna leaves each query's own document out; CQADupstack averages twelve corpora; the rest is no retrieval."""
    names = ["ArguAna", "CQADupstackRetrieval", "STS12", "AskUbuntuDupQuestions", "NFCorpus", "LEMBPasskeyRetrieval"]
    assert [task.metadata.name for task in mteb_tasks(names) if ranked_here(task)] == names[-2:]
    with pytest.raises(ValueError, match=r"'ArguAna' \(Retrieval\) is scored by mteb itself"):
        from_mteb(["NFCorpus", "ArguAna"])


def test_records_hold_mtebs_own_scores(encoder):
    records = run_tasks(encoder, parse_policy("truncate"), [Similarity(), Grouping()])
    assert all(record.keys() == RECORD for record in records)
    similarity, grouping = records
    assert (similarity["task"], similarity["group"], similarity["metric"]) == ("Similarity", "sts", "cosine_spearman")
    assert (grouping["group"], grouping["metric"], grouping["other_scores"]) == ("clustering", "v_measure", {})
    theirs = mteb.evaluate(encoder.model, [Similarity()], cache=None, co2_tracker=False).task_results[0].scores["test"]
    assert similarity["value"] == pytest.approx(theirs[0]["cosine_spearman"], abs=1e-5)
    assert similarity["other_scores"]["cosine_pearson"] == pytest.approx(theirs[0]["cosine_pearson"], abs=1e-5)
    assert similarity["model_fingerprint"] == encoder.fingerprint


def test_what_the_paper_prints_of_pairs_is_kept(encoder):
    (record,) = run_tasks(encoder, parse_policy("truncate"), [Pairs()])
    (theirs,) = mteb.evaluate(encoder.model, [Pairs()], cache=None, co2_tracker=False).task_results[0].scores["test"]
    assert record["metric"] == "max_ap"
    assert record["other_scores"][paper.table("20")["metric"]] == pytest.approx(theirs["cosine_accuracy"], abs=1e-5)


def test_a_task_that_fails_is_named(encoder):
    class Broken(Similarity):
        def load_data(self, **kwargs):
            raise ConnectionError("no\nnetwork")

    with pytest.raises(ValueError, match="mteb task 'Similarity' failed: ConnectionError: no network"):
        run_tasks(encoder, parse_policy("truncate"), [Broken()])
    with pytest.raises(ValueError, match="has no task, benchmark or group called 'Nothing'"):
        run_mteb(encoder, parse_policy("truncate"), ["Nothing"])


def test_banking77(shared, encoder):
    """A classification task from local files: four of the intents, by an untrained model."""
    columns = {
        split: pq.read_table(shared / "data" / "banking77" / f"{split}.parquet").to_pylist()
        for split in ("train", "test")
    }
    intents = sorted({row["label"] for row in columns["test"]}, key=str)[:4]
    rows = {
        split: [
            {"text": row["text"], "label": intents.index(row["label"])} for row in all_rows if row["label"] in intents
        ]
        for split, all_rows in columns.items()
    }

    class FourIntents(AbsTaskClassification):
        metadata = about("FourIntents", "Classification", "accuracy")
        n_experiments = 2

        def load_data(self, **kwargs):
            self.dataset = DatasetDict({split: Dataset.from_list(part) for split, part in rows.items()})
            self.data_loaded = True

    (record,) = run_tasks(encoder, parse_policy("truncate"), [FourIntents()], system="tiny")
    unit = SentenceTransformer(modules=[*encoder.model, Normalize()])  # our encoders give unit rows, whatever the model
    (theirs,) = mteb.evaluate(unit, [FourIntents()], cache=None, co2_tracker=False).task_results
    assert (record["system"], record["group"], record["split"]) == ("tiny", "classification", "test")
    assert record["value"] == pytest.approx(theirs.scores["test"][0]["accuracy"], abs=1e-4)
