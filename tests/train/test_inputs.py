"""Mistakes are found before torch is imported, by the entry points and by the command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m2bert.train.cli import ready

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "m2bert.cli", "train"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
LIGHT = """
import sys
from m2bert.train.cli import ready
try:
    ready(sys.argv[1], sys.argv[2:])
except ValueError as error:
    print(error)
heavy = {"torch", "transformers", "accelerate", "pyarrow", "datasets", "numpy"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else 0)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder: text without a validation split, a file, a folder that is not ours, another model."""
    monkeypatch.chdir(tmp_path)
    for folder in ("text", "foreign", "bert", "own", "tasks/queries", "tasks/documents"):
        Path(folder).mkdir(parents=True)
    Path("text/train.txt").write_text("some words")
    Path("text/validation.csv").write_text("some words")
    Path("file").touch()
    Path("foreign/thesis.tex").touch()
    for folder, kind in (("bert", "bert"), ("own", "m2bert")):
        Path(folder, "config.json").write_text(json.dumps({"model_type": kind}))
    Path("tasks/queries/train.parquet").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("entry", "arguments", "named"),
    [
        ("mlm", ["data.sources=[{path: text}]"], ["text", "validation.csv"]),
        ("mlm", ["data.sources=[{path: nowhere}]"], ["nowhere"]),
        ("mlm", ["data.sources=[{path: a/b}]"], ["a/b", "tokenizer.path"]),
        ("mlm", ["tokenizer.path=no", "model.path=nowhere"], ["tokenizer.path=no ", "model.path=nowhere"]),
        ("mlm", ["data.prepared=nowhere"], ["data.prepared=nowhere"]),
        ("mlm", ["prepare=text"], ["prepare=text"]),
        ("mlm", ["model.path=bert"], ["model.path=bert"]),
        ("mlm", ["model.new_model={num_layers: 3}"], ["model.new_model.num_layers", "'num_hidden_layers'"]),
        ("mlm", ["model.architecture={num_layers: 3}"], ["model.architecture.num_layers", "'num_hidden_layers'"]),
        ("mlm", ["model.new_model={hidden_dropout_prob: x}"], ["model.new_model", "hidden_dropout_prob", "'x'"]),
        ("mlm", ["model.architecture={dtype: x}"], ["model.architecture", "'x'"]),
        ("mlm", ["model.new_model={max_position_embeddings: 500}"], ["data.max_tokens=512", "500"]),
        ("align", ["data.sources=[{path: a/b}]", "loss.teacher=/no/teacher"],
         ["a/b is on the Hub", "loss.teacher=/no/teacher"]),
        ("align", [], ["loss.teacher=null"]),
        ("align", ["loss.teacher=a/b", "data.sources=[{path: nowhere}]"], ["nowhere"]),
        ("align", ["loss.teacher=a/b", "model.new_model={max_position_embeddings: 500}"], ["data.max_tokens=2048"]),
        ("align", ["data.prepared=nowhere"], ["data.prepared=nowhere"]),
        ("mlm", ["output_dir=file/out"], ["file/out", "Not a directory"]),
        ("mlm", ["output_dir=foreign"], ["foreign", "thesis.tex"]),
        ("opl", ["data.path=./nowhere"], ["data.path", "nowhere"]),
        ("opl", ["data.path=tasks/gone"], ["data.path=tasks/gone", "queries/train.parquet"]),  # it is not on the Hub
        ("opl", ["data.path=tasks"], ["data.path=tasks", "documents/train.parquet"]),
        ("opl", ["data.document_tokens=20000", "data.query_tokens=30000"],
         ["data.document_tokens=20000", "data.query_tokens=30000", "16384"]),
        ("opl", ["data.triples=nowhere.jsonl"], ["data.triples", "nowhere.jsonl"]),
        ("opl", ["data.triples=./nowhere"], ["data.triples", "./nowhere is no file"]),
        ("opl", ["data.negatives_path=nowhere.parquet", "data.negatives=2"], ["data.negatives_path"]),
        ("opl", ["loss.name=prototype", "loss.teacher=/no/teacher", "data.document_window=first",
                 "data.passage_share=0", "data.query_dropout=false"], ["loss.teacher=/no/teacher"]),
    ],
)  # fmt: skip
def test_what_is_not_there_or_does_not_fit_is_named(place, entry, arguments, named):
    with pytest.raises(ValueError, match=".") as error:
        ready(entry, arguments)
    assert all(name in str(error.value) for name in named), error.value


@pytest.mark.parametrize(
    ("package", "entry", "arguments"),
    [
        ("accelerate", "mlm", []),
        ("datasets", "mlm", ["data.sources=[{path: a/b}]", "tokenizer.path=a/b"]),
        ("peft", "opl", ["data.path=a/b", "lora.rank=2", "model.path=own"]),
        ("sentence_transformers", "align", ["loss.teacher=a/b"]),
        ("pytrec_eval", "opl", ["data.path=a/b", "evaluation.select=true"]),
    ],
)
def test_a_package_that_is_not_installed_is_named(place, monkeypatch, package, entry, arguments):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"needs {package}, .*pip install"):
        ready(entry, arguments)


@pytest.mark.parametrize(
    ("entry", "arguments"),
    [
        ("mlm", ["--config", "mlm-2k", "data.sources=[{path: text}]", "tokenizer.path=a/b"]),
        ("align", ["--config", "align-small", "data.sources=[{path: a/b}]", "loss.teacher=a/b"]),
        ("opl", ["--config", "loco-2k-opl", "data.path=./tasks", "model.path=bert"]),
    ],
)
def test_mistakes_are_found_before_anything_heavy_is_imported(place, entry, arguments):
    done = subprocess.run([sys.executable, "-c", LIGHT, entry, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "command", [[sys.executable, str(ROOT / "train" / "mlm.py")], [*COMMAND, "mlm"], [*COMMAND, "mlm", "--processes=2"]]
)
def test_a_mistake_is_one_line_and_exit_code_2(place, command):
    done = subprocess.run([*command, "step=3"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "mlm: configuration: unknown key 'step'; did you mean 'steps'?\n")


def run(arguments, **more):
    return subprocess.Popen([*COMMAND, *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, **more)


@pytest.mark.slow
def test_a_command_of_two_processes_ends_without_the_launchers_traceback(place, toy_corpus):
    """With what one process finds too late for the checks, after SIGTERM, and well."""
    small = ["model.new_model={hidden_size: 16, max_position_embeddings: 64}", f"data.sources=[{{path: {toy_corpus}}}]",
             "data.max_tokens=32", "data.batch_tokens=64", "tokenizer.vocab_size=200", "evaluation.examples=2",
             "output_dir=out", "log_every=100"]  # fmt: skip
    refused = run(["mlm", "--processes", "2", *small, "tracker=comet_ml"])
    _, errors = refused.communicate(timeout=200)
    assert refused.returncode == 2
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("mlm: tracker=comet_ml is not installed")

    stopped = run(["mlm", "--processes", "2", *small, "steps=100000", "checkpoint_every=2"])
    while not list(Path("out.run").glob("step-*")) and stopped.poll() is None:
        time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate(timeout=200)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert "stopped by SIGTERM after step" in errors

    done = run(["mlm", "--processes", "2", *small, "steps=2", "overwrite=true"])
    _, errors = done.communicate(timeout=200)
    assert done.returncode == 0, errors
    assert json.loads(Path("out/training.json").read_text())["processes"] == 2
