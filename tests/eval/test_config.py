from pathlib import Path

import pytest

from m2bert.eval.config import EvalConfig, TaskSettings, TrainingTask

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CONFIGS = [*EXPERIMENTS.glob("baselines/configs/*.yaml"), *EXPERIMENTS.glob("m2bert_small/configs/*.yaml")]


def read(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return EvalConfig.from_yaml(path)


def test_a_short_file_is_enough(tmp_path):
    config = read(tmp_path, "tasks: {data: folder}\nencoders: bm25\n")
    assert config.tasks == (TaskSettings(data="folder"),)
    assert [encoder.model for encoder in config.encoders] == ["bm25"]
    assert config.policies == ("truncate",)


def test_every_key_arrives(tmp_path):
    config = read(
        tmp_path,
        """
tasks:
  - {data: folder, names: [a, b], split: dev, development_split: train, documents: other, revision: abc}
  - data: locov1
    distractors: {path: text, count: 5, seed: 3}
encoders:
  - bm25
  - model: org/name
    name: Name
    policies: best-chunk
    paper_row: M2-BERT-32k
    trained_on: [MS MARCO, {data: folder, name: a}]
policies: [truncate, late-chunk]
hybrids: rrf
rerank_depth: 50
output: scores.json
""",
    )
    first, second = config.tasks
    assert (first.names, first.split, first.development_split) == (("a", "b"), "dev", "train")
    assert (first.documents, first.revision) == ("other", "abc")
    assert (second.distractors.path, second.distractors.count, second.distractors.seed) == ("text", 5, 3)
    encoder = config.encoders[1]
    assert (encoder.name, encoder.policies, encoder.paper_row) == ("Name", ("best-chunk",), "M2-BERT-32k")
    assert encoder.trained_on == ("MS MARCO", TrainingTask(data="folder", name="a"))
    assert (config.policies, config.hybrids, config.rerank_depth) == (("truncate", "late-chunk"), ("rrf",), 50)
    assert config.output == "scores.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: {data: x}\nencoders: bm25\npolices: truncate", "unknown key 'polices'; did you mean 'policies'"),
        ("tasks: {data: x, slit: y}\nencoders: bm25", r"unknown key 'tasks\[0\].slit'; did you mean 'split'"),
        ("tasks: {data: x}\nencoders: [bm25, {modle: y}]", r"unknown key 'encoders\[1\].modle'; did you mean 'model'"),
        ("encoders: bm25", "tasks is missing"),
        ("tasks: {names: x}\nencoders: bm25", r"tasks\[0\].data is missing"),
        ("tasks: {data: x}\nencoders: []", "encoders is"),
        ("tasks: []\nencoders: bm25", "tasks is"),
        ("tasks: {data: x, development_split: test}\nencoders: bm25\nhybrids: weighted", "is the split that is scored"),
        ("tasks: {data: x, distractors: {path: y, count: 0}}\nencoders: bm25", "distractors.count is 0"),
        ("tasks: {data: x}\nencoders: {model: y, trained_on: {data: z}}", "name is missing"),
        ("tasks: {data: x}\nencoders: bm25\nhybrids: rerrank", "'rerrank' is unknown; did you mean 'rerank'"),
        ("tasks: {data: x}\nencoders: bm25\nrerank_depth: 0", "rerank_depth is 0"),
        ("tasks: {data: x}\nencoders: bm25\npolicies: [1]", r"policies\[0\] is 1"),
        ("tasks: {data: x}\nencoders: bm25\nrerank_depth: many", "rerank_depth is 'many'"),
        ("tasks: {data: x}\nencoders: bm25\noutput: 5", "output is 5"),
        ("tasks: {data: x, documents: }\nencoders: bm25", r"tasks\[0\].documents is None"),
        ("tasks: {data: x}\nencoders: {model: y, name: [z]}", r"encoders\[0\].name is \['z'\]"),
        ("- a list", "holds no mapping"),
        ("{", "no valid YAML"),
        ("[" * 10_000, "nested too deeply"),
        ("tasks: &t {data: x}\nencoders: *t", "aliases are not read"),
        ("tasks: {data: x}\nencoders: bm25\nencoders: bm25", "'encoders' stands twice"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.yaml cannot be read"):
        EvalConfig.from_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS), ids=lambda path: path.stem)
def test_the_configurations_of_the_repository_are_read(path):
    assert EvalConfig.from_yaml(path).encoders
