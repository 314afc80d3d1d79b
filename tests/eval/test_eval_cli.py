import json

import pytest
from typer.testing import CliRunner

from m2bert_eval.cli import app


def run(*arguments, data, output, task="tiny"):
    options = ["--data", str(data), "--task", task, "--output", str(output)]
    return CliRunner().invoke(app, [*map(str, arguments), *options])


def test_writes_a_record_for_each_encoder(tiny_data, tiny_model, tmp_path):
    output = tmp_path / "new" / "results.json"
    result = run("--encoder", "bm25", "--encoder", "tfidf-rp", "--encoder", tiny_model, data=tiny_data, output=output)
    assert result.exit_code == 0, result.output
    records = json.loads(output.read_text())["results"]
    assert [record["encoder"] for record in records] == ["bm25", str(tiny_model), "tfidf-rp:16"]
    for record in records:
        low, high = record["interval_95"]
        assert 0 <= low <= record["ndcg_at_10"] <= high <= 1
        assert sorted(record["query_scores"]) == [f"q{i}" for i in range(6)]
        assert (record["task"], record["split"], record["policy"]) == ("tiny", "test", "truncate")
        assert len(record["data_fingerprint"]) == 64
        assert {"python", "torch", "sentence-transformers", "bm25s"} <= record["versions"].keys()
    assert records[0]["ndcg_at_10"] == 1.0
    assert records[0]["counts"] == {"queries": 6, "documents": 6, "truncated_documents": 0}
    assert records[1]["counts"]["truncated_documents"] == 6
    assert records[1]["max_tokens"] == 12
    assert records[2]["seeds"] == 20
    assert list(output.parent.iterdir()) == [output]
    assert "100.00" in result.stdout


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
        (["--encoder", "./nowhere"], "'./nowhere' is no folder"),
        (["--encoder", "bm25", "--policy", "chunk"], "'chunk' is unknown; choose from: truncate"),
        (["--encoder", "bm25", "--split", "train"], "train.parquet does not exist; splits"),
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
    result = run("--encoder", "bm25", data=tiny_data, output=tmp_path / "results.json", task="huge")
    assert result.exit_code == 2
    assert "tasks there: tiny" in result.stderr
