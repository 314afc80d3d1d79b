import json

import pytest
from typer.testing import CliRunner

from m2bert.eval.analyses.cli import app


@pytest.fixture
def data(tmp_path, write_task, tiny_rows):
    """The tiny task, with a train split, places of the answers, and documents that answer nothing."""
    queries, documents = tiny_rows
    for number, row in enumerate(queries):
        row["position"] = number / 6
    others = [{"pid": f"o{i}", "passage": f"stone wall {'cloud ' * (i + 1)}rain", "dataset": "tiny"} for i in range(6)]
    write_task(tmp_path / "data", queries[:2], documents[:2], split="train")
    return write_task(tmp_path / "data", queries, documents + others)


def run(command, *arguments, output):
    return CliRunner().invoke(app, [command, *map(str, arguments), "--output", str(output)])


def records_of(result, output):
    assert result.exit_code == 0, result.output
    content = json.loads(output.read_text())
    assert content["format"] == 1
    assert f"written to {output}" in result.stdout
    return content["results"]


def test_what_a_task_is_like(data, tiny_model, tmp_path):
    output = tmp_path / "out.json"
    (record,) = records_of(run("lengths", "--data", data, "--tokenizer", tiny_model, output=output), output)
    assert record["documents"]["count"] == 12
    assert record["documents"]["max_tokens"] == 17
    assert record["tokenizer"] == str(tiny_model)
    assert run("spans", "--data", data, output=output).exit_code == 2  # it exists
    assert json.loads(output.read_text())["results"] == [record]
    result = run("spans", "--data", data, "--task", "tiny", "--overwrite", output=output)
    (record,) = records_of(result, output)
    assert record["quarters"] == [2, 1, 2, 1]
    assert "2 1 2 1" in result.stdout
    (record,) = records_of(run("overlap", "--data", data, "--overwrite", output=output), output)
    assert (record["test"]["split"], record["train"]["split"]) == ("test", "train")
    assert record["documents"]["same"] == record["queries"]["same"] == 2


def test_needle(data, tiny_model, tmp_path):
    output = tmp_path / "needle.json"
    arguments = ["--data", data, "--encoder", "bm25", "--encoder", tiny_model, "--policy", "truncate", "--policy"]
    arguments += ["best-chunk:tokens=6", "--passages", 4, "--positions", 2, "--no-cache"]
    records = records_of(run("needle", *arguments, output=output), output)
    name = tiny_model.name
    assert [record["system"] for record in records] == ["bm25", f"{name} / truncate", f"{name} / best-chunk:tokens=6"]
    assert [row["position"] for row in records[0]["rows"]] == [0, 3]
    assert [row["ndcg_at_10"] for row in records[0]["rows"]] == [1.0, 1.0]
    assert len({record["data_fingerprint"] for record in records}) == 1
    assert [record["encoder"] for record in records] == ["bm25", str(tiny_model), str(tiny_model)]
    assert [record["seen_share"] for record in records] == pytest.approx([1, 10 / 36, 1], abs=0.05)  # of some 36 words
    assert records[0]["model_fingerprint"] is None
    assert len(records[1]["model_fingerprint"]) == 64


def test_clusters(data, tiny_model, tmp_path):
    output = tmp_path / "clusters.json"
    sources = ["--source", f"one={data}", "--source", f"two={data / 'documents' / 'train.parquet'}"]
    (record,) = records_of(run("clusters", "--encoder", tiny_model, *sources, "--no-cache", output=output), output)
    assert record["sources"] == {"one": 12, "two": 2}
    assert record["truncated_texts"] == 8  # the tiny task's own, of 17 words
    assert record["knn"]["chance"] == pytest.approx(12 / 14)


def test_efficiency(data, tiny_model, tmp_path):
    output = tmp_path / "efficiency.json"
    arguments = ["--data", data, "--encoder", tiny_model, "--policy", "truncate", "--policy", "chunk-average"]
    arguments += ["--tokens", 8, "--tokens", 24, "--repeats", 1]
    records = records_of(run("efficiency", *arguments, output=output), output)
    assert [record["policy"] for record in records] == ["truncate", "chunk-average"]
    assert [[row["tokens"] for row in record["rows"]] for record in records] == [[8, 24], [8, 24]]
    assert [row["seen_share"] for row in records[0]["rows"]] == pytest.approx([1, 10 / 22])
    assert [row["seen_share"] for row in records[1]["rows"]] == [1, 1]
    assert all(row["encode_seconds"] > 0 for record in records for row in record["rows"])


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        ("lengths", ["--tokenizer", "./nowhere"], "tokenizer './nowhere' cannot be read"),
        ("lengths", ["--tokenizer", "{folder}"], "No such file"),
        ("lengths", ["--tokenizer", "{folder}/data/documents/test.parquet"], "test.parquet' cannot be read"),
        ("spans", ["--task", "tin"], "'tin'"),
        ("needle", ["--encoder", "bm25"], "passages=40 needs 39 distractors a query, but task 'tiny' has 6"),
        ("needle", ["--encoder", "bm25", "--positions", "0"], "--positions"),
        ("needle", ["--encoder", "./nowhere"], "encoder './nowhere' is no folder"),
        ("efficiency", ["--encoder", "bm25"], "encoder 'bm25' gives no vectors"),
        ("clusters", ["--encoder=./model", "--source=a=b", "--source=c=d", "--policy=best-chunk"], "several vectors"),
        ("clusters", ["--encoder", "./model", "--source", "a"], "NAME=PATH"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(data, tmp_path, command, arguments, named):
    output = tmp_path / "out.json"
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    result = run(command, *([] if command == "clusters" else ["--data", data]), *arguments, output=output)
    assert result.exit_code == 2
    assert named in result.stderr
    assert result.stderr.count("\n") == 1 or "Usage" in result.stderr
    assert not output.exists()


def test_a_task_must_be_named_where_there_are_several(tmp_path, write_task, tiny_rows):
    rows = [table + [{**row, "dataset": "other"} for row in table] for table in tiny_rows]
    data = write_task(tmp_path, *rows)
    result = run("needle", "--encoder", "bm25", "--data", data, output=tmp_path / "out.json")
    assert result.exit_code == 2
    assert "has 2 tasks; name one with --task: other, tiny" in result.stderr
