"""Run files of any system are scored as trec_eval scores them, and ours can be written for other programs."""

import json

import numpy as np
import pytest
import pytrec_eval
from typer.testing import CliRunner

from m2bert.eval.cli import app
from m2bert.eval.records import best_rank
from m2bert.eval.search import score_metrics, trec_order
from m2bert.eval.tasks.schema import load_task
from m2bert.eval.trec import read_qrels, read_run
from m2bert.records import check_record

QRELS = "q1 0 a 1\nq1 0 b 0\nq2 0 c 2\nq2 0 d -1\nq3 0 e 1\n"
GOOD = "q1 Q0 a 1 3 t\nq1 Q0 b 2 2 t\nq2 Q0 c 1 1 t\nq3 Q0 e 1 1 t\n"
POOR = "q1 Q0 b 1 3 t\nq1 Q0 a 2 2 t\nq2 Q0 d 1 1 t\nq9 Q0 x 1 1 t\n"


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M2BERT_CACHE", str(tmp_path / "cache"))
    for name, text in (("judged.qrels", QRELS), ("good.run", GOOD), ("poor.run", POOR)):
        (tmp_path / name).write_text(text)
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_scores_differences_and_records(files, caplog):
    result = call("eval", "--run", "good.run", "--run", "poor.run", "--qrels", "judged.qrels", "--output", "r.json")
    assert result.exit_code == 0, result.output
    assert "poor.run: 1 of 3 queries have no judgments" in caplog.text
    assert "poor.run: 1 of 3 judged queries are not ranked; they count 0" in caplog.text
    good, poor = [check_record(record, "") for record in json.loads((files / "r.json").read_text())["results"]]
    assert (good["system"], good["task"], good["ndcg_at_10"]) == ("good", "judged", 1.0)
    assert poor["query_scores"] == {"q1": pytest.approx(1 / np.log2(3)), "q2": 0.0, "q3": 0.0}
    assert {name: poor["metrics"][name]["mean"] for name in ("ndcg_at_1", "recall_at_100")} == {
        "ndcg_at_1": 0.0,
        "recall_at_100": pytest.approx(1 / 3),
    }
    assert poor["ranks"] == {"q1": 2, "q2": None, "q3": None}
    assert (poor["policy"], poor["vectors"], poor["claim"]) == ("not stated",) * 3
    assert poor["counts"]["documents"] is None
    assert "poor     good   -79.0" in result.stdout
    assert "poor     good   -79.0" in call("compare", "r.json").stdout


def test_one_without_a_relevant_document_counts_zero(files, caplog):
    (files / "judged.qrels").write_text(QRELS + "q4 0 f -2\n")
    result = call("eval", "--run", "good.run", "--qrels", "judged.qrels")
    assert "1 of 4 queries have no relevant document and count 0" in caplog.text
    assert "75.00" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "good.run"], "--run and --qrels go together"),
        (["--qrels", "judged.qrels"], "--run and --qrels go together"),
        (["--run", "goood.run", "--qrels", "judged.qrels"], "goood.run is no file"),
        (["--run", "good.run", "--qrels", "judged.qrels", "--encoder", "bm25"], "leave out --encoder"),
        (["--run", "judged.qrels", "--qrels", "judged.qrels"], "has not the columns"),
        (["--run", "other.run", "--qrels", "judged.qrels"], "none of the 3 judged queries, but others, as 'x'"),
        (["--run", "good.run", "--qrels", "judged.qrels", "--output", "good.run"], "exists"),
        (["--run", "good.run", "--qrels", "judged.qrels", "--write-run", "."], "is not empty"),
        (["--run", "good.run", "--qrels", "high.qrels"], "grade above 1,000,000"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(files, arguments, message):
    (files / "other.run").write_text("x Q0 a 1 1 t\n")
    (files / "high.qrels").write_text("q1 0 a 4294967296\n")
    result = call("eval", *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_what_is_shown(files):
    text = call("eval", "--run", "poor.run", "--qrels", "judged.qrels", "--show", "1").stdout
    assert "q1  (first answer at rank 2)\n    1  3.0000  b\n\nq2  (no answer among 1 documents)" in text
    text = call("eval", "--run", "good.run", "--qrels", "judged.qrels", "--show", "1").stdout
    assert "q1  (first answer at rank 1)\n+   1  3.0000  a\n" in text


def test_written_rankings_score_the_same_and_show_their_texts(files, tiny_data):
    arguments = ["--data", tiny_data, "--encoder", "bm25", "--encoder", "tfidf-rp:2", "--output", "r.json"]
    result = call("eval", *arguments, "--write-run", "runs", "--show", "1")
    assert result.exit_code == 0, result.output
    assert "q0  pear  (first answer at rank 1)\n+   1  " in result.stdout
    assert "  p0  apple pear apple pear" in result.stdout
    folder = files / "runs" / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == ["bm25.run", "tiny.qrels"]  # of tfidf-rp: many rankings
    qrels, run = read_qrels(folder / "tiny.qrels"), read_run(folder / "bm25.run")
    assert qrels == load_task(tiny_data, "tiny", "test").qrels
    record = json.loads((files / "r.json").read_text())["results"][0]
    assert score_metrics(run, qrels)["ndcg_at_10"] == record["query_scores"]
    with open(folder / "bm25.run") as file, open(folder / "tiny.qrels") as judged:
        evaluator = pytrec_eval.RelevanceEvaluator(pytrec_eval.parse_qrel(judged), {"ndcg_cut.10"})
        theirs = evaluator.evaluate(pytrec_eval.parse_run(file))
    assert {qid: found["ndcg_cut_10"] for qid, found in theirs.items()} == record["query_scores"]


def test_ids_that_no_run_file_can_hold_are_told_before_the_work(files, write_task, tiny_rows, monkeypatch):
    monkeypatch.setattr("m2bert.eval.run.Evaluation.lexical", lambda *_: pytest.fail("worked"))
    queries, documents = tiny_rows
    documents.append({"pid": "a document.txt", "passage": "text", "dataset": "tiny"})
    data = write_task(files / "data", queries, documents)
    result = call("eval", "--data", data, "--encoder", "bm25", "--output", "r.json", "--write-run", "runs")
    assert result.exit_code == 2
    assert "1 ids have white space, as 'a document.txt'" in result.stderr


def test_the_first_answer_stands_where_trec_eval_ranks_it():
    generator = np.random.default_rng(0)
    for _ in range(200):
        scores = {f"d{i}": float(score) for i, score in enumerate(generator.choice([0.1, 0.1 + 1e-9, 0.5], 8))}
        judged = {f"d{i}": 1 for i in generator.integers(0, 12, 2)}
        ranks = [rank for rank, pid in enumerate(trec_order(scores), 1) if pid in judged]
        assert best_rank(scores, judged) == min(ranks, default=None)


def test_tasks_of_one_name_do_not_share_a_folder(files, tiny_data, write_task, tiny_rows):
    write_task(tiny_data, tiny_rows[0][:5], tiny_rows[1], split="dev")
    (files / "c.yaml").write_text(
        f"tasks: [{{data: '{tiny_data}'}}, {{data: '{tiny_data}', split: dev}}]\nencoders: bm25\noutput: r.json\n"
    )
    assert call("eval", "--config", "c.yaml", "--write-run", "runs").exit_code == 0
    first, second = sorted((files / "runs").iterdir())
    assert [len(read_qrels(next(folder.glob("*.qrels")))) for folder in (first, second)] == [6, 5]
