"""Whole runs on a tiny task: what is in the records, and what one bad encoder must not spoil."""

import dataclasses
import json
import math

import numpy as np
import pytest
from fake_encoders import Words

from m2bert.eval import run as module
from m2bert.eval.analyses.needle import build_haystacks
from m2bert.eval.analyses.texts import by_length, describe_lengths
from m2bert.eval.config import EncoderSettings, EvalConfig, TaskSettings, TrainingTask
from m2bert.eval.encoders.cache import VectorStore
from m2bert.eval.rankers import Bm25Ranker
from m2bert.eval.records import best_ranks, examples
from m2bert.eval.run import answer_tokens
from m2bert.eval.tasks.load import load_tasks
from m2bert.eval.tasks.schema import load_task
from m2bert.records import check_record


def evaluate(config, store):
    run = module.Evaluation(config, store)
    return run.run(), run.failures


@pytest.fixture
def words(monkeypatch, tiny_rows, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("words", "broken"):  # a plain name is a folder's
        (tmp_path / name).mkdir()
    vocabulary = sorted({word for row in tiny_rows[1] for word in row["passage"].split()})
    counts = lambda text, task: [text.split().count(word) + 1e-3 for word in vocabulary]  # noqa: E731
    encoder = Words(counts, fingerprint="words", dimensions=len(vocabulary))

    def load(name):
        if name == "broken":
            raise ValueError("encoder 'broken' cannot be loaded")
        return encoder

    monkeypatch.setattr(module, "load_system", load)
    return encoder


@pytest.fixture
def settings(tiny_data, write_task, tiny_rows):
    write_task(tiny_data, *tiny_rows, split="validation")

    def make(*encoders, **changes):
        return EvalConfig(tasks=TaskSettings(data=str(tiny_data)), encoders=encoders, **changes)

    return make


def test_a_record_holds_what_reports_need(settings, words):
    (record,), failures = evaluate(settings("words"), VectorStore(None))
    assert not failures
    assert (record["kind"], record["system"], record["policy"]) == ("retrieval", "words / truncate", "truncate")
    assert (record["vectors"], record["claim"], record["hybrid"]) == ("one", "not stated", None)
    assert record["ndcg_at_10"] == record["metrics"]["ndcg_at_10"]["mean"] == 1.0
    assert record["metrics"]["recall_at_100"] == {"mean": 1.0, "interval_95": [1.0, 1.0]}
    assert record["counts"] == {"queries": 6, "documents": 6, "truncated_documents": 6, "truncated_queries": 0}
    assert record["seen_share"] == pytest.approx(4 / 17)
    assert (record["dimensions"], record["max_tokens"], record["model_fingerprint"]) == (12, 4, "words")
    assert record["ranks"] == dict.fromkeys(record["query_scores"], 1)
    assert record["by_length"]["rows"][0]["queries"] == 6
    assert record["failures"] == []
    assert record["successes"][0]["found"] == record["successes"][0]["answer"]


def test_answers_that_are_not_there_and_grades_below_one_are_no_answers(settings, words, tiny_data, tiny_rows):
    """Queries q0 to q2: one of two answers is there; none is; the only judgment is of grade 0 (as -1 in q3)."""
    documents, queries = tiny_rows[1], tiny_rows[0][:4]
    lines = [("q0", "gone", 2), ("q0", "p0", 1), ("q1", "away", 1), ("q2", "p2", 0), ("q3", "p2", -1), ("q3", "p3", 1)]
    folder = tiny_data.parent / "beir"
    (folder / "qrels").mkdir(parents=True)
    (folder / "qrels" / "test.tsv").write_text("".join(f"{qid}\t{pid}\t{grade}\n" for qid, pid, grade in lines))
    for name, rows, columns in (("corpus", documents, ("pid", "passage")), ("queries", queries, ("qid", "query"))):
        rows = [{"_id": row[columns[0]], "text": row[columns[1]]} for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = settings("words", "bm25", hybrids=("rrf",))
    config = config.model_copy(update={"tasks": (TaskSettings(data=str(folder)),)})
    for record in evaluate(config, VectorStore(None))[0]:
        check_record(record, record["system"])
        ideal = 2 + 1 / math.log2(3)  # grades 2, 1
        assert record["query_scores"] == pytest.approx({"q0": 1 / ideal, "q1": 0, "q2": 0, "q3": 1})
        assert record["ranks"] == {"q0": 1, "q1": None, "q2": None, "q3": 1}
        assert [(entry["qid"], entry["answer"]) for entry in record["failures"]] == [
            ("q1", None), ("q2", None), ("q0", "p0")]  # fmt: skip
    (task,) = load_tasks(str(folder), None, "test")
    assert [row["queries"] for row in by_length({"q0": 1.0, "q1": 0.0}, answer_tokens(words, task))] == [1, 0, 0, 0]
    lengths = describe_lengths(task, lambda texts: np.array([len(text) for text in texts]), "characters")
    assert lengths["answers_per_query"] == 1
    assert build_haystacks(task, 2).needles.keys() == {"q0", "q3"}


def test_policies_and_hybrids_are_systems_of_their_own(settings, words):
    """Plain tfidf-rp takes its width from the models."""
    policies, hybrids = ("truncate", "best-chunk:tokens=3"), ("rerank", "rrf", "standardized", "weighted")
    records, _ = evaluate(settings("tfidf-rp", "words", policies=policies, hybrids=hybrids), VectorStore(None))
    alone = ["words / truncate", "words / best-chunk:tokens=3", "tfidf-rp:12"]
    hybrids = [
        f"{name} + bm25 ({how})" for name in alone[:2] for how in ("rerank:100", "rrf", "standardized", "weighted")
    ]
    assert sorted(record["system"] for record in records) == sorted(alone + hybrids)
    weighted = next(record for record in records if record["system"].endswith("(weighted)"))
    assert weighted["hybrid"]["development_split"] == "validation"
    assert 0 <= weighted["hybrid"]["weight"] <= 1
    assert [record["vectors"] for record in records if record["system"] in alone] == ["one", "several", "one"]
    assert (records[-1]["seeds"], records[-1]["ranks"]) == (20, None)  # a mean over rankings has no ranks


def test_one_bad_encoder_does_not_spoil_the_others_of_one_process(settings, words, monkeypatch):
    records, failures = evaluate(settings("tfidf-rp", "bm25", "broken"), VectorStore(None))
    assert [record["system"] for record in records] == ["bm25"]
    assert failures[0] == "encoder 'broken' failed, and it is left out: encoder 'broken' cannot be loaded"
    assert "tfidf-rp is left out: no other encoder gave vectors" in failures[1]
    with pytest.raises(ValueError, match="cannot be loaded"):
        evaluate(settings("broken"), VectorStore(None))
    monkeypatch.setenv("WORLD_SIZE", "2")  # the others would wait for this process at the next encoder
    with pytest.raises(ValueError, match="'broken' cannot be loaded"):
        evaluate(settings("bm25", "broken"), VectorStore(None))


def test_a_model_trained_on_the_task_is_fine_tuned_and_its_overlap_counted(settings, words, tiny_data):
    training = TrainingTask(data=str(tiny_data), name="tiny", split="validation")
    seen = EncoderSettings(model="words", trained_on=(training,))
    other = EncoderSettings(model="words", name="other", trained_on=("MS MARCO",))
    records, _ = evaluate(settings(seen, other), VectorStore(None))
    assert [record["claim"] for record in records] == ["fine-tuned", "zero-shot"]
    (overlap,) = records[0]["overlap"]
    assert (overlap["documents"]["same"], overlap["queries"]["same"]) == (6, 6)
    assert records[1]["overlap"] is None


def test_a_policy_that_a_model_cannot_follow_does_not_take_the_others_along(settings, words):
    config = settings("words", policies=("late-chunk", "truncate", "truncate:tokens=9"))
    records, failures = evaluate(config, VectorStore(None))
    assert [record["system"] for record in records] == ["words / truncate"]
    assert len(failures) == 2
    assert "late-chunk" in failures[0]
    assert "tokens=9" in failures[1]


def test_what_was_scored_before_a_failure_stays(settings, words, monkeypatch):
    def rank(self, task):
        if self.policy.name == "best-chunk":
            raise RuntimeError("out of\nmemory")
        return Bm25Ranker().rank(task)

    monkeypatch.setattr(module.DenseRanker, "rank", rank)
    records, failures = evaluate(settings("words", policies=("truncate", "best-chunk")), VectorStore(None))
    assert [record["system"] for record in records] == ["words / truncate"]
    assert failures == ["encoder 'words' failed on task 'tiny', and the rest of it there is left out: out of memory"]


def test_nothing_is_scored_twice(settings, words, tiny_data):
    config = settings(
        "words", "words", "bm25", policies=("truncate:tokens=3", "truncate:tokens=3"), hybrids=("rrf",) * 2
    )
    twice = config.model_copy(
        update={"tasks": (*config.tasks, TaskSettings(data=str(tiny_data), names=("tiny", "tiny")))}
    )
    records, _ = evaluate(twice, VectorStore(None))
    names = ["words / truncate:tokens=3", "words / truncate:tokens=3 + bm25 (rrf)", "bm25"]
    assert [record["system"] for record in records] == names


def test_models_of_the_same_short_name_are_told_apart(settings, words):
    records, _ = evaluate(settings("a/words", "b/words", "other/model"), VectorStore(None))
    names = ["a/words / truncate", "b/words / truncate", "other/model / truncate"]
    assert [record["system"] for record in records] == names
    one, other = EncoderSettings(model="a/words", name="W"), EncoderSettings(model="b/words", name="W")
    with pytest.raises(ValueError, match="'a/words' and 'b/words' would both be called 'W / truncate'"):
        evaluate(settings(one, other), VectorStore(None))


def test_what_is_not_there_is_named_before_any_model_runs(settings, words):
    lost = EncoderSettings(model="words", trained_on=(TrainingTask(data="/not/there", name="tiny"),))
    with pytest.raises(ValueError, match="'/not/there' is no folder"):
        evaluate(settings("bm25", lost), VectorStore(None))
    assert not words.encoded


def test_the_weight_is_never_chosen_on_the_split_that_is_scored(settings, words, monkeypatch):
    """A source may call its only split otherwise than it was asked for."""
    load = module.load_tasks

    def loaded_as_dev(*arguments, **settings):
        return [dataclasses.replace(task, split="dev") for task in load(*arguments, **settings)]

    monkeypatch.setattr(module, "load_tasks", loaded_as_dev)
    with pytest.raises(ValueError, match="development_split='validation' of task 'tiny' is the split that is scored"):
        evaluate(settings("words", hybrids=("weighted",)), VectorStore(None))


def test_texts_of_equal_scores_come_by_id(tiny_data):
    task = load_task(tiny_data, "tiny", "test")
    run = {qid: {pid: 1.0 for pid in judged} for qid, judged in task.qrels.items() if qid != "q5"}
    scores = {qid: float(qid in run) for qid in task.queries}
    texts = examples(task, run, scores, best_ranks(task, run))
    assert [entry["qid"] for entry in texts["successes"]] == ["q0", "q1", "q2"]
    assert [(entry["qid"], entry["rank"], entry["found"]) for entry in texts["failures"]] == [("q5", None, None)]
    assert best_ranks(task, run) == {qid: 1 if qid in run else None for qid in task.queries}


@pytest.mark.parametrize(("is_lexical", "kind"), [(True, ("none", "untrained")), (False, ("several", "not stated"))])
def test_a_model_of_mteb_that_searches_is_what_it_is(settings, monkeypatch, is_lexical, kind):
    """Its BM25 is no model with several vectors, as its ColBERT is."""

    searcher = Bm25Ranker()
    searcher.is_lexical = is_lexical
    monkeypatch.setattr(module, "load_system", lambda model: searcher)
    (record,), _ = evaluate(settings("mteb:some/searcher"), VectorStore(None))
    assert (record["vectors"], record["claim"]) == kind
