"""The recipes of experiments/, replayed in short on toy text."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoConfig, AutoModel

from m2bert.hub.folder import write_folder
from m2bert.train.tokenizer import train_wordpiece

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TEXTS = [" ".join(f"Sentence {i} of text {n} tells of river {i * n}." for i in range(80)) for n in range(40)]


def write(columns, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_task(folder, name, splits):
    for split in splits:
        pids, dataset = [f"{name}_{split}_{n}" for n in range(len(TEXTS))], {"dataset": [name] * len(TEXTS)}
        queries = {"qid": pids, "query": [text[:60] for text in TEXTS], "answer_pids": [[pid] for pid in pids]}
        write(queries | dataset, folder / "queries" / f"{split}.parquet")
        write({"pid": pids, "passage": TEXTS} | dataset, folder / "documents" / f"{split}.parquet")


@pytest.fixture
def replay(tmp_path):
    """Return a function that replays a recipe of a folder of experiments/, one step a run, twice, and checks that the
    second time changes none of these folders of RUNS."""
    data, runs = tmp_path / "data", tmp_path / "runs"
    for split in ("train", "validation"):
        for source in ("web", "encyclopedic", "books"):
            write({"text": TEXTS}, data / "pretrain" / source / f"{split}.parquet")
    write_task(runs / "pydocs", "pydocs", ("train", "validation"))
    write_task(data / "locov1_qmsum", "qmsum", ("train", "validation"))
    for name in ("openstax_question", "openstax_summary", "rfc_summary"):
        write_task(data / name, name, ("train",))
    tokenizer = train_wordpiece(TEXTS, 200)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    fields = {"vocab_size": 208, "hidden_size": 384, "num_hidden_layers": 1, "pooling": "mean", "num_pooling_heads": 1}
    teacher = AutoModel.from_config(AutoConfig.for_model("m2bert", **fields))
    write_folder(teacher, tokenizer, tmp_path / "teacher")
    env = os.environ | {"PYTHON": sys.executable, "DATA": str(data), "RUNS": str(runs), "STEPS": "1", "CHARS": "20000",
                        "TOKENIZER": str(tmp_path / "tokenizer"), "TEACHER": str(tmp_path / "teacher"),
                        "RESULTS": str(tmp_path / "results")}  # fmt: skip

    def run(recipe, names, script="run.sh"):
        written = []
        for _ in range(2):
            command = ["bash", EXPERIMENTS / recipe / script]
            done = subprocess.run(command, env=env, cwd=tmp_path, text=True, capture_output=True)
            assert done.returncode == 0, done.stderr[-2000:]
            written.append({name: (runs / name / "model.safetensors").stat().st_mtime_ns for name in names})
        assert written[0] == written[1]
        return runs

    return run


@pytest.mark.slow
def test_the_shipped_models_come_from_text_and_a_second_time_does_nothing(replay):
    names = {"m2bert-small", "control", "zero-shot", "zero-shot-control"}
    runs = replay("m2bert_small", [f"export/{name}" for name in names])
    assert {folder.name for folder in (runs / "export").iterdir()} == names
    students = ["layers", *(f"control-{rate}" for rate in ("8e-4", "1.5e-3", "3e-3"))]
    students += ["layers-long", "control-long-1.5e-3", "control-long-3e-3"]
    replay("m2bert_mini", [*students, "export/m2bert-mini", "export/m2bert-mini-control"])
    config = AutoConfig.from_pretrained(runs / "export" / "m2bert-mini")
    assert (config.num_hidden_layers, config.intermediate_size, config.lexical_heads) == (2, 768, 24)
    assert AutoConfig.from_pretrained(runs / "export" / "m2bert-mini-control").num_hidden_layers == 0


@pytest.mark.slow
def test_students_with_other_mixers_come_from_text_and_a_second_time_does_nothing(replay):
    rates = {"none": ("8e-4", "1.5e-3", "3e-3"), "long-conv": ("5e-4", "1e-3", "2e-3")}
    rates |= {"attention": ("1e-3", "2e-3", "4e-3")}
    names = [*rates, "attention-short", *(f"{mixer}-{rate}" for mixer, its in rates.items() for rate in its)]
    runs = replay("m2bert_mini", [f"mixers/{name}" for name in names], "mixers.sh")
    assert {folder.name for folder in (runs / "mixers").iterdir()} == set(names)
    assert {path.stem for path in (runs.parent / "results").iterdir()} == set(names)


@pytest.mark.slow
def test_students_of_other_stretches_come_from_text_and_a_second_time_does_nothing(replay):
    names = [f"{mixer}-{length}" for mixer in ("none", "long-conv") for length in (128, 192, 512)]
    runs = replay("m2bert_mini", [f"stretches/{name}" for name in names], "stretches.sh")
    assert {path.stem for path in (runs.parent / "results").iterdir()} == set(names)
