import json
import re

import pytest
from typer.testing import CliRunner

from m2bert.eval.cli import app, format_records


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("M2BERT_CACHE", str(tmp_path / "cache"))


def call(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def run(*arguments, data, output, task="tiny"):
    return call("eval", *arguments, "--data", data, "--task", task, "--output", output)


def test_writes_a_record_for_each_encoder(tiny_data, tiny_model, tmp_path):
    output = tmp_path / "new" / "results.json"
    result = run("--encoder", "bm25", "--encoder", "tfidf-rp", "--encoder", tiny_model, data=tiny_data, output=output)
    assert result.exit_code == 0, result.output
    content = json.loads(output.read_text())
    records = content["results"]
    assert content["format"] == 1
    assert [record["encoder"] for record in records] == ["bm25", str(tiny_model), "tfidf-rp:16"]
    assert [record["policy"] for record in records] == ["whole", "truncate", "whole"]
    for record in records:
        low, high = record["interval_95"]
        assert 0 <= low <= record["ndcg_at_10"] <= high <= 1
        assert sorted(record["query_scores"]) == [f"q{i}" for i in range(6)]
        assert (record["task"], record["split"]) == ("tiny", "test")
        assert len(record["data_fingerprint"]) == 64
        assert {"python", "torch", "sentence-transformers", "bm25s"} <= record["versions"].keys()
    assert records[0]["ndcg_at_10"] == 1.0
    assert records[0]["counts"] == {"queries": 6, "documents": 6, "truncated_documents": 0, "truncated_queries": 0}
    assert records[1]["counts"]["truncated_documents"] == 6
    assert records[1]["max_tokens"] == 12
    assert records[2]["seeds"] == 20
    assert list(output.parent.iterdir()) == [output]
    assert "100.00" in result.stdout


def test_a_configuration_file_says_the_same(tiny_data, tmp_path):
    output = tmp_path / "results.json"
    config = tmp_path / "run.yaml"
    config.write_text(f"tasks: {{data: '{tiny_data}'}}\nencoders: [bm25, 'tfidf-rp:8']\noutput: '{output}'\n")
    assert call("eval", "--config", config).exit_code == 0
    records = json.loads(output.read_text())["results"]
    assert [record["system"] for record in records] == ["bm25", "tfidf-rp:8"]
    both = call("eval", "--config", config, "--encoder", "bm25", "--overwrite")
    assert both.exit_code == 2
    assert "leave out --encoder and --data" in both.stderr


@pytest.mark.parametrize("flag", [["--policy", "truncate"], ["--split", "test"], ["--hybrid", "rrf"], ["--task", "t"]])
def test_flags_that_a_configuration_would_swallow_are_refused(tmp_path, flag):
    result = call("eval", "--config", tmp_path / "run.yaml", *flag, "--output", tmp_path / "results.json")
    assert result.exit_code == 2
    assert f"leave out --encoder and --data and what goes with them, here {flag[0]}" in result.stderr


def test_the_folder_one_is_in_has_a_name(tiny_data, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model)
    assert run("--encoder", ".", data=tiny_data, output=tmp_path / "results.json").exit_code == 0
    (record,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert record["system"] == "tiny / truncate"


def test_an_output_that_cannot_be_written_is_told_before_the_work(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("m2bert.eval.run.evaluate", lambda *_: pytest.fail("worked"))
    (tmp_path / "file").write_text("")
    for output, message in ((tmp_path, "is a folder"), (tmp_path / "file" / "results.json", "cannot be written")):
        result = run("--encoder", "bm25", "--overwrite", data=tiny_data, output=output)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_table_does_not_claim_what_nobody_counted():
    record = {
        "kind": "retrieval",
        "system": "s",
        "task": "t",
        "ndcg_at_10": 0.5,
        "interval_95": [0.4, 0.6],
        "metrics": {"recall_at_100": {"mean": 1.0}},
        "counts": {"queries": 7, "documents": 7, "truncated_documents": None, "truncated_queries": None},
        "seconds": 1.0,
    }
    assert "7" not in format_records([record])


def test_cut_queries_and_documents_are_counted(write_task, tiny_rows, tiny_model, tmp_path):
    queries, documents = tiny_rows
    queries[0]["query"] = "pear " * 30
    documents[0]["passage"] = "apple"
    output = tmp_path / "results.json"
    arguments = ["--encoder", tiny_model, "--policy", "truncate", "--policy", "best-chunk"]
    result = run(*arguments, data=write_task(tmp_path / "data", queries, documents), output=output)
    counts = [record["counts"] for record in json.loads(output.read_text())["results"]]
    assert [(each["truncated_queries"], each["truncated_documents"]) for each in counts] == [(1, 5), (1, 0)]
    assert "1/6" in result.stdout
    assert "5/6" in result.stdout


@pytest.mark.parametrize("name", ["one\nERROR fake line", "a\x1b[2Jb", "a\u202eb"])
def test_a_task_of_any_name_prints_no_line_of_its_own(write_task, tiny_rows, tmp_path, name):
    rows = [[{**row, "dataset": name} for row in kind] for kind in tiny_rows]
    output = tmp_path / "results.json"
    arguments = ["--encoder", "bm25", "--encoder", "tfidf-rp:8"]
    result = run(*arguments, data=write_task(tmp_path / "data", *rows), output=output, task=name)
    assert result.exit_code == 0, result.output
    result = result.output + call("compare", output).output
    assert not re.search("^ERROR|[\x1b\u202e]", result, flags=re.M)


def test_an_existing_file_needs_overwrite(tiny_data, tmp_path):
    output = tmp_path / "results.json"
    output.write_text("precious")
    assert run("--encoder", "bm25", data=tiny_data, output=output).exit_code == 2
    assert output.read_text() == "precious"
    assert run("--encoder", "bm25", "--overwrite", data=tiny_data, output=output).exit_code == 0
    assert json.loads(output.read_text())["results"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "tfidf-rp"], "write tfidf-rp:256"),
        (["--encoder", "tfidf-rp:0"], "'tfidf-rp:0' has no positive number"),
        (["--encoder", "bm52"], "'bm52' is unknown; did you mean 'bm25'?"),
        (["--encoder", "./nowhere"], "'./nowhere' is no folder"),
        (["--encoder", "$NOT_SET_ANYWHERE"], "environment variable that is not set"),
        (["--encoder", "bm25", "--policy", "best-chunks"], "did you mean 'best-chunk'?"),
        (["--encoder", "bm25", "--hybrid", "rerrank"], "'rerrank' is unknown; did you mean 'rerank'?"),
        (["--encoder", "bm25", "--split", "train"], "train.parquet does not exist; splits"),
        (["--encoder", "bm25", "--hybrid", "weighted", "--development-split", "test"], "is the split that is scored"),
        ([], "no encoder given"),
        (["--encoder", ""], "encoder '' names nothing"),
        (["--encoder", "bm25", "--distractor-count", "5"], "add --distractors FOLDER"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tiny_data, tmp_path, arguments, message):
    output = tmp_path / "results.json"
    result = run(*arguments, data=tiny_data, output=output)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not output.exists()


def test_an_unknown_task_names_those_there(tiny_data, tmp_path):
    result = run("--encoder", "bm25", data=tiny_data, output=tmp_path / "results.json", task="tinny")
    assert result.exit_code == 2
    assert "did you mean 'tiny'?" in result.stderr


def test_results_without_the_failed_encoder_are_written_and_the_failure_told(tiny_data, tmp_path):
    output = tmp_path / "results.json"
    empty = tmp_path / "empty"
    empty.mkdir()
    result = run("--encoder", "bm25", "--encoder", empty, data=tiny_data, output=output)
    assert result.exit_code == 1
    assert "empty" in result.stderr
    assert [record["system"] for record in json.loads(output.read_text())["results"]] == ["bm25"]


def test_compare_sets_systems_against_each_other(tiny_data, tmp_path):
    output = tmp_path / "results.json"
    run("--encoder", "bm25", "--encoder", "tfidf-rp:1", data=tiny_data, output=output)
    result = call("compare", output, "--against", "bm25")
    assert result.exit_code == 0
    assert "tfidf-rp:1" in result.stdout
    assert "*" in result.stdout  # a single dimension is worse, beyond chance
    unknown = call("compare", output, "--against", "nobody")
    assert unknown.exit_code == 2
    assert "'nobody' has no scores here; there are: bm25, tfidf-rp:1" in unknown.stderr


def test_compare_refuses_what_is_no_result_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("{}")
    assert "no result file: " in call("compare", path).stderr


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ("[1]", "record 0 of"),
        ("null", "results is None"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"kind": "retrieval"}]', "system is missing"),
    ],
)
def test_compare_names_a_record_that_it_cannot_read(tmp_path, results, message):
    path = tmp_path / "results.json"
    path.write_text(f'{{"format": 1, "results": {results}}}')
    result = call("compare", path)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
