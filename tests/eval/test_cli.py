import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m2bert.eval.cli import app, format_records
from m2bert.eval.config import EvalConfig, TrainingTask
from m2bert.eval.encoders.fingerprint import model_files

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CONFIGS = [*EXPERIMENTS.glob("baselines/configs/*.yaml"), *EXPERIMENTS.glob("m2bert_small/configs/*.yaml")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("M2BERT_CACHE", str(tmp_path / "cache"))


def call(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def run(*arguments, data, output, task="tiny"):
    return call("eval", *arguments, "--data", data, "--task", task, "--output", output)


def records_in(path):
    return json.loads(path.read_text())["results"]


def test_writes_a_record_for_each_encoder(tiny_data, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model)
    output = tmp_path / "new" / "results.json"
    result = run("--encoder", "bm25", "--encoder", "tfidf-rp", "--encoder", ".", data=tiny_data, output=output)
    assert result.exit_code == 0, result.output
    records = records_in(output)
    assert [record["system"] for record in records] == ["bm25", "tiny / truncate", "tfidf-rp:16"]
    assert [record["policy"] for record in records] == ["whole", "truncate", "whole"]
    for record in records:
        low, high = record["interval_95"]
        assert 0 <= low <= record["ndcg_at_10"] <= high <= 1
        assert sorted(record["query_scores"]) == [f"q{i}" for i in range(6)]
        assert (record["task"], record["split"]) == ("tiny", "test")
        assert len(record["data_fingerprint"]) == 64
        assert {"python", "torch", "sentence-transformers", "bm25s"} <= record["versions"].keys()
    bm25, model, tfidf = records
    assert bm25["ndcg_at_10"] == 1.0
    assert bm25["counts"] == {"queries": 6, "documents": 6, "truncated_documents": 0, "truncated_queries": 0}
    assert (model["counts"]["truncated_documents"], model["max_tokens"], tfidf["seeds"]) == (6, 12, 20)
    assert "model_files" not in bm25
    assert model["model_files"] == model_files(tiny_model)  # ties the score to the files that it was measured on
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= model["model_files"].keys()
    assert list(output.parent.iterdir()) == [output]
    assert "100.00" in result.stdout


def test_a_configuration_file_says_the_same(tiny_data, tmp_path):
    output = tmp_path / "results.json"
    config = tmp_path / "run.yaml"
    config.write_text(f"tasks: {{data: '{tiny_data}'}}\nencoders: [bm25, 'tfidf-rp:8']\noutput: '{output}'\n")
    assert call("eval", "--config", config).exit_code == 0
    assert [record["system"] for record in records_in(output)] == ["bm25", "tfidf-rp:8"]
    for flag in (["--encoder", "bm25"], ["--policy", "truncate"], ["--split", "test"], ["--hybrid", "rrf"]):
        both = call("eval", "--config", config, *flag, "--overwrite")
        assert both.exit_code == 2
        assert f"leave out {flag[0]}" in both.stderr


def test_an_output_that_cannot_be_written_is_told_before_the_work(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("m2bert.eval.run.Evaluation", lambda *_: pytest.fail("worked"))
    file = tmp_path / "file"
    file.write_text("precious")
    cases = ((tmp_path, "is a folder"), (file / "results.json", "cannot be written"), (file, "exists"))
    for output, message in cases:
        overwrite = [] if output == file else ["--overwrite"]
        result = run("--encoder", "bm25", *overwrite, data=tiny_data, output=output)
        assert (result.exit_code, message in result.stderr) == (2, True)
    assert file.read_text() == "precious"


def test_a_table_does_not_claim_what_nobody_counted():
    counts = {"queries": 7, "documents": 7, "truncated_documents": None, "truncated_queries": None}
    record = {"kind": "retrieval", "system": "s", "task": "t", "ndcg_at_10": 0.5, "interval_95": [0.4, 0.6],
              "metrics": {"recall_at_100": {"mean": 1.0}}, "counts": counts, "seconds": 1.0}  # fmt: skip
    assert "7" not in format_records([record])


def test_cut_queries_and_documents_are_counted(write_task, tiny_rows, tiny_model, tmp_path):
    queries, documents = tiny_rows
    queries[0]["query"] = "pear " * 30
    documents[0]["passage"] = "apple"
    arguments = ["--encoder", tiny_model, "--policy", "truncate", "--policy", "best-chunk"]
    data = write_task(tmp_path / "data", queries, documents)
    table = run(*arguments, data=data, output=tmp_path / "results.json").stdout
    assert re.findall(r"(\d)/6 +(\d)/6", table) == [("1", "5"), ("1", "0")]


@pytest.mark.parametrize("name", ["one\nERROR fake line", "a\x1b[2Jb", "a\u202eb"])
def test_a_task_of_any_name_prints_no_line_of_its_own(write_task, tiny_rows, tmp_path, name):
    rows = [[{**row, "dataset": name} for row in kind] for kind in tiny_rows]
    output = tmp_path / "results.json"
    arguments = ["--encoder", "bm25", "--encoder", "tfidf-rp:8"]
    result = run(*arguments, data=write_task(tmp_path / "data", *rows), output=output, task=name)
    assert result.exit_code == 0, result.output
    result = result.output + call("compare", output).output
    assert not re.search("^ERROR|[\x1b\u202e]", result, flags=re.M)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "tfidf-rp"], "tfidf-rp:256"),
        ([], "--encoder is missing; add --encoder bm25"),
        (["--encoder", "bm52"], "did you mean 'bm25'?"),
        (["--encoder", "./nowhere"], "'./nowhere'"),
        (["--encoder", "$NOT_SET_ANYWHERE"], "'$NOT_SET_ANYWHERE'"),
        (["--encoder", "bm25", "--policy", "best-chunks"], "did you mean 'best-chunk'?"),
        (["--encoder", "bm25", "--hybrid", "rerrank"], "'rerank', 'rrf', 'standardized' or 'weighted'"),
        (["--encoder", "bm25", "--split", "train"], "train.parquet"),
        (["--encoder", "bm25", "--hybrid", "weighted", "--development-split", "test"], "development_split='test'"),
        ([], "--encoder"),
        (["--encoder", "bm25", "--task", "tinny"], "did you mean 'tiny'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tiny_data, tmp_path, arguments, message):
    output = tmp_path / "results.json"
    result = run(*arguments, data=tiny_data, output=output)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not output.exists()


def test_results_without_the_failed_encoder_replace_a_file_and_the_failure_is_told(tiny_data, tmp_path):
    output, empty = tmp_path / "results.json", tmp_path / "empty"
    output.write_text("old")
    empty.mkdir()
    result = run("--encoder", "bm25", "--encoder", empty, "--overwrite", data=tiny_data, output=output)
    assert result.exit_code == 1
    assert "empty" in result.stderr
    assert [record["system"] for record in records_in(output)] == ["bm25"]


def test_compare_sets_systems_against_each_other(tiny_data, tmp_path):
    output = tmp_path / "results.json"
    run("--encoder", "bm25", "--encoder", "tfidf-rp:1", data=tiny_data, output=output)
    result = call("compare", output, "--against", "bm25")
    assert result.exit_code == 0
    assert "tfidf-rp:1" in result.stdout
    assert "*" in result.stdout  # a single dimension is worse, beyond chance
    unknown = call("compare", output, "--against", "nobody")
    assert unknown.exit_code == 2
    assert "'nobody'" in unknown.stderr


def test_compare_names_a_record_that_it_cannot_read(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"format": 1, "results": [{"kind": "retrieval"}]}')
    result = call("compare", path)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"record 0 of {path}: system is missing" in result.stderr


def read(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return EvalConfig.from_yaml(path)


def test_every_key_arrives(tmp_path):
    config = read(
        tmp_path,
        """
tasks:
  - {data: folder, names: a, split: dev, development_split: train, documents: other, revision: abc}
  - {data: locov1, distractors: {path: text, count: 5, seed: 3}}
encoders: [bm25, {model: org/name, policies: best-chunk, trained_on: [MS MARCO, {data: folder, name: a}]}]
hybrids: rrf
""",
    )
    first, second = config.tasks
    assert (first.names, first.split, first.development_split, first.documents) == (("a",), "dev", "train", "other")
    assert (second.distractors.path, second.distractors.count, second.distractors.seed) == ("text", 5, 3)
    plain, full = config.encoders
    assert (plain.model, plain.policies, config.policies, config.hybrids) == ("bm25", (), ("truncate",), ("rrf",))
    assert (full.policies, full.trained_on) == (("best-chunk",), ("MS MARCO", TrainingTask(data="folder", name="a")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: {data: x}\nencoders: bm25\npolices: truncate", "unknown key 'polices'; did you mean 'policies'"),
        ("tasks: {data: x}\nencoders: [bm25, {modle: y}]", r"unknown key 'encoders\[1\].modle'; did you mean 'model'"),
        ("tasks: {data: x}\nencoders: []", "encoders is"),
        ("tasks: {data: x, distractors: {path: y, count: 0}}\nencoders: bm25", "distractors.count is 0"),
        ("tasks: {data: x}\nencoders: {model: y, trained_on: {data: z}}", "name is missing"),
        ("tasks: {data: x}\nencoders: bm25\nencoders: bm25", "'encoders' stands twice"),
    ],
)
def test_bad_configurations_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("path", sorted(CONFIGS), ids=lambda path: path.stem)
def test_the_configurations_of_the_repository_are_read(path):
    assert EvalConfig.from_yaml(path).encoders
