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


@pytest.mark.slow
def test_m2bert_small_runs_from_text_to_folders_and_a_second_time_does_nothing(tmp_path):
    for split in ("train", "validation"):
        for source in ("web", "encyclopedic", "books"):
            write({"text": TEXTS}, tmp_path / "data" / "pretrain" / source / f"{split}.parquet")
        for name, folder in (("qmsum", tmp_path / "data" / "locov1_qmsum"), ("pydocs", tmp_path / "runs" / "pydocs")):
            pids, dataset = [f"{name}_{split}_{n}" for n in range(len(TEXTS))], {"dataset": [name] * len(TEXTS)}
            queries = {"qid": pids, "query": [text[:60] for text in TEXTS], "answer_pids": [[pid] for pid in pids]}
            write(queries | dataset, folder / "queries" / f"{split}.parquet")
            write({"pid": pids, "passage": TEXTS} | dataset, folder / "documents" / f"{split}.parquet")
    train_wordpiece(TEXTS, 200).save_pretrained(tmp_path / "tokenizer")
    env = os.environ | {"PYTHON": sys.executable, "DATA": str(tmp_path / "data"), "RUNS": str(tmp_path / "runs"),
                        "TOKENIZER": str(tmp_path / "tokenizer"), "STEPS": "1"}  # fmt: skip

    exports, names = tmp_path / "runs" / "export", {"m2bert-small", "control", "zero-shot", "zero-shot-control"}
    written = []
    for _ in range(2):
        done = subprocess.run(
            ["bash", EXPERIMENTS / "m2bert_small" / "run.sh"], env=env, cwd=tmp_path, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert {folder.name for folder in exports.iterdir()} == names
        written.append({name: (exports / name / "model.safetensors").stat().st_mtime_ns for name in names})
    assert written[0] == written[1]


@pytest.mark.slow
def test_m2bert_mini_runs_from_text_and_a_teacher_to_folders_and_a_second_time_does_nothing(tmp_path):
    for split in ("train", "validation"):
        for source in ("web", "encyclopedic"):
            write({"text": TEXTS}, tmp_path / "data" / "pretrain" / source / f"{split}.parquet")
    tokenizer = train_wordpiece(TEXTS, 200)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    fields = {"vocab_size": 208, "hidden_size": 384, "num_hidden_layers": 1, "pooling": "mean", "num_pooling_heads": 1}
    teacher = AutoModel.from_config(AutoConfig.for_model("m2bert", **fields))
    write_folder(teacher, tokenizer, tmp_path / "teacher")
    env = os.environ | {"PYTHON": sys.executable, "DATA": str(tmp_path / "data"), "RUNS": str(tmp_path / "runs"),
                        "TOKENIZER": str(tmp_path / "tokenizer"), "TEACHER": str(tmp_path / "teacher"), "STEPS": "1",
                        "CHARS": "20000"}  # fmt: skip

    rates, written = ("8e-4", "1.5e-3", "3e-3", "6e-3"), []
    names = {"layers", *(f"control-{rate}" for rate in rates)}
    for _ in range(2):
        done = subprocess.run(["bash", EXPERIMENTS / "m2bert_mini" / "run.sh"], env=env, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr[-2000:]
        written.append({name: (tmp_path / "runs" / name / "model.safetensors").stat().st_mtime_ns for name in names})
    assert written[0] == written[1]
    config = AutoConfig.from_pretrained(tmp_path / "runs" / "layers")
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 768)
