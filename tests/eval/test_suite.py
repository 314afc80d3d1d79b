"""A suite scores every task that it can, goes on after an interruption, and is summed up in one table."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from m2bert.eval import run as module
from m2bert.eval.cli import app
from m2bert.eval.records import retrieval_record
from m2bert.eval.statistics import mean_interval, mean_over_tasks
from m2bert.records import check_record


@pytest.fixture
def suite(tmp_path, monkeypatch, write_task, tiny_rows):
    """Two tasks, `one` and `two`, a folder with another split, and one of something else."""
    monkeypatch.setenv("M2BERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_task(tmp_path / "suite" / name, *([{**row, "dataset": name} for row in rows] for rows in tiny_rows))
    write_task(tmp_path / "suite" / "train-only", *tiny_rows, split="train")
    (tmp_path / "suite" / "pictures").mkdir()
    (tmp_path / "suite" / "README.md").write_text("no folder")
    return tmp_path / "suite"


def call(suite, *arguments, encoders=("bm25", "tfidf-rp:1")):
    flags = [part for encoder in encoders for part in ("--encoder", encoder)]
    return CliRunner().invoke(app, ["eval", "--suite", str(suite), *flags, "--output", "r.json", *arguments])


def names(suite):
    records = json.loads((suite.parent / "r.json").read_text())["results"]
    return [(check_record(record, "")["system"], record["task"]) for record in records]


def test_every_task_is_scored_and_what_is_none_is_named(suite, caplog):
    result = call(suite)
    assert result.exit_code == 0, result.output
    assert names(suite) == [(system, task) for system in ("bm25", "tfidf-rp:1") for task in ("one", "two")]
    assert "train-only: no test split; left out" in caplog.text
    assert "pictures: no retrieval data; left out" in caplog.text
    header, bm25, tfidf, _ = result.stdout.splitlines()
    assert header.split()[:4] == ["nDCG@10", "one", "two", "mean"]
    assert bm25.split()[:4] == ["bm25", "100.0", "100.0", "100.0"]
    assert tfidf.split()[-2:] == ["-27.7*", "-"]  # worse beyond chance; nobody measured seconds a document


def test_a_task_that_fails_is_named_and_the_others_go_on(suite, write_task, tiny_rows):
    queries, documents = tiny_rows
    write_task(suite / "bad", [{**queries[0], "answer_pids": ["nowhere"]}], documents)
    result = call(suite)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"m2bert: data '{suite / 'bad'}' failed: task 'tiny'")
    assert len(names(suite)) == 4


def test_an_interrupted_run_goes_on_and_nothing_is_lost(suite, monkeypatch):
    made = []

    def record(system, settings, loaded, *rest):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((system, loaded.task.name))
        return retrieval_record(system, settings, loaded, *rest)

    monkeypatch.setattr(module, "retrieval_record", record)
    assert call(suite).exit_code == 130
    assert names(suite) == made
    made[:] = [None] * 4
    assert call(suite).exit_code == 0
    assert made[4:] == [("tfidf-rp:1", "two")]
    made[:] = [None] * 4
    assert call(suite, encoders=["tfidf-rp:2"]).exit_code == 0
    assert len(names(suite)) == 6  # others are kept
    assert call(suite, "--overwrite", encoders=["bm25"]).exit_code == 0
    assert names(suite) == [("bm25", "one"), ("bm25", "two")]


def test_changed_data_and_versions_are_scored_again(suite, write_task, tiny_rows, monkeypatch):
    assert call(suite, encoders=["bm25"]).exit_code == 0
    queries, documents = ([{**row, "dataset": "one"} for row in rows] for rows in tiny_rows)
    write_task(suite / "one", queries[:5], documents)
    made = []
    monkeypatch.setattr(module, "retrieval_record", lambda *given: made.append(given[2]) or retrieval_record(*given))
    assert call(suite, encoders=["bm25"]).exit_code == 0
    assert [loaded.task.name for loaded in made] == ["one"]
    monkeypatch.setattr(module, "decisive_versions", lambda: {"python": "4"})
    assert call(suite, encoders=["bm25"]).exit_code == 0
    assert len(made) == 3


def test_a_file_that_holds_no_records_is_never_replaced(suite):
    (suite.parent / "r.json").write_text('{"precious": 1}')
    result = call(suite)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert (suite.parent / "r.json").read_text() == '{"precious": 1}'


def test_what_does_not_go_with_a_suite(suite):
    result = call(suite, "--data", "x", "--task", "y")
    assert (result.exit_code, "leave out --data, --task" in result.stderr) == (2, True)
    assert "no folder of folders" in call(suite / "pictures").stderr


def test_the_mean_counts_tasks_alike_and_pairs_queries():
    generator = np.random.default_rng(0)
    base = [generator.random(50), generator.random(200)]
    tasks = [[dict(enumerate(scores)), dict(enumerate(scores + 0.1))] for scores in base]
    first, second = mean_over_tasks(tasks)
    assert first.mean == pytest.approx((base[0].mean() + base[1].mean()) / 2)
    assert (second.difference, *second.difference_interval) == (pytest.approx(0.1),) * 3
    error = 1.96 * np.sqrt(base[0].var() / 50 + base[1].var() / 200) / 2  # of a mean of two independent means
    assert first.interval == pytest.approx((first.mean - error, first.mean + error), abs=0.1 * error)
    assert mean_over_tasks(tasks[:1])[0].interval == mean_interval(base[0])
