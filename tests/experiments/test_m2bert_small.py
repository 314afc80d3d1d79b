"""The recipe of models/m2bert-small, replayed in short on toy text."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2bert.train.tokenizer import train_wordpiece

SCRIPT = Path(__file__).parents[2] / "experiments" / "m2bert_small" / "run.sh"
TEXTS = [" ".join(f"Sentence {i} of text {n} tells of river {i * n}." for i in range(80)) for n in range(40)]


def toy_task(folder, name):
    """A task in the LoCoV1 schema, splits train and validation."""
    for split in ("train", "validation"):
        pids = [f"{name}_{split}_{n}" for n in range(len(TEXTS))]
        queries = {"qid": pids, "query": [text[:60] for text in TEXTS], "answer_pids": [[pid] for pid in pids]}
        for kind, columns in (("queries", queries), ("documents", {"pid": pids, "passage": TEXTS})):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(columns | {"dataset": [name] * len(pids)}), folder / kind / f"{split}.parquet")


@pytest.mark.slow
def test_the_recipe_runs_from_text_to_folders_and_a_second_time_does_nothing(tmp_path):
    for source in ("web", "encyclopedic", "books"):
        folder = tmp_path / "data" / "pretrain" / source
        folder.mkdir(parents=True)
        for split in ("train", "validation"):
            pq.write_table(pa.table({"text": TEXTS}), folder / f"{split}.parquet")
    toy_task(tmp_path / "data" / "locov1_qmsum", "qmsum")
    toy_task(tmp_path / "runs" / "pydocs", "pydocs")
    train_wordpiece(TEXTS, 200).save_pretrained(tmp_path / "tokenizer")
    env = os.environ | {"PYTHON": sys.executable, "DATA": str(tmp_path / "data"), "RUNS": str(tmp_path / "runs"),
                        "TOKENIZER": str(tmp_path / "tokenizer"), "STEPS": "1"}  # fmt: skip

    def replay():
        return subprocess.run(["bash", SCRIPT], env=env, cwd=tmp_path, text=True, capture_output=True)

    first = replay()
    assert first.returncode == 0, first.stderr[-2000:]
    exports = tmp_path / "runs" / "export"
    names = {"m2bert-small", "control", "zero-shot", "zero-shot-control"}
    assert {folder.name for folder in exports.iterdir()} == names
    before = {name: (exports / name / "model.safetensors").stat().st_mtime_ns for name in names}
    second = replay()
    assert second.returncode == 0, second.stderr[-2000:]
    assert {name: (exports / name / "model.safetensors").stat().st_mtime_ns for name in names} == before
