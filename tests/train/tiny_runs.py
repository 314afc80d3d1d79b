"""Runs of a tiny model that take a second, for the tests of the entry points."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from m2bert.hub.folder import write_folder
from m2bert.train import align_run, mlm_run, retrieval_run
from m2bert.train.tokenizer import train_wordpiece

ROOT = Path(__file__).parents[2]
ENTRIES = {"mlm": mlm_run, "opl": retrieval_run, "align": align_run}
TINY = ["model.architecture.hidden_size=16", "model.architecture.num_hidden_layers=1", "log_every=1", "steps=3",
        "model.architecture.intermediate_size=32", "model.architecture.max_position_embeddings=64",
        "model.architecture.filter_order=8", "tokenizer.vocab_size=200"]  # fmt: skip
MLM = [*TINY, "data.max_tokens=32", "data.batch_tokens=64", "evaluation.examples=2"]
OPL = [*TINY, "data.batch_size=4", "data.document_tokens=40", "data.passage_tokens=[2, 4]"]
ALIGN = [*TINY, "data.max_tokens=64", "data.stretch_tokens=24", "data.span_tokens=[2, 6]", "data.piece_tokens=5",
         "data.batch_tokens=160", "evaluation.chars=3000", "model.architecture.hidden_size=32"]  # fmt: skip
PLAIN = ["data.document_window=first", "data.passage_share=0", "data.query_dropout=false"]
MEASURED = {"seconds", "tokens_per_second", "waiting_share", "peak_memory_bytes", "evaluation_seconds"}
# With None in sys.modules a package cannot be imported, nor found by code that looks for it.
BARE = """
import sys
missing = "datasets pyarrow sentence_transformers pandas sklearn scipy evaluate mteb bm25s pytrec_eval matplotlib peft"
sys.modules.update(dict.fromkeys(missing.split()))
from m2bert.train.cli import train
train(sys.argv[1], sys.argv[2:])
"""


def arguments(entry, corpus, output, *more):
    """Arguments of a run on a corpus in the LoCoV1 schema."""
    if entry == "opl":
        return [*OPL, "data.tasks=[toy]", f"data.path={corpus}", f"output_dir={output}", *more]
    sources = f"data.sources=[{{path: {corpus}}}]"
    if entry == "align":
        loss = [f"loss.teacher={teacher(corpus)}", f"loss.teacher_cache={corpus}/teacher-cache"]
        return [*ALIGN, *loss, sources, f"output_dir={output}", *more]
    return [*MLM, sources, f"data.token_cache={corpus}/tokens", f"output_dir={output}", *more]


def teacher(corpus):
    """A folder of a random M2-BERT with vectors of 32 dimensions, made once for a corpus."""
    folder = corpus / "teacher"
    if not folder.is_dir():
        tokenizer = train_wordpiece(pq.read_table(corpus / "documents" / "train.parquet")["passage"].to_pylist(), 150)
        fields = {"vocab_size": 152, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32,
                  "max_position_embeddings": 128, "filter_order": 8, "num_pooling_heads": 2,
                  "pooling": "weighted_mean"}  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model = AutoModel.from_config(AutoConfig.for_model("m2bert", **fields))
        write_folder(model, tokenizer, folder)
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def record(folder):
    return json.loads((folder / "training.json").read_text())


def computed(history):
    """The records of a run without what depends on the machine."""
    return [{name: row[name] for name in row.keys() - MEASURED} for row in history]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def here(entry, given):
    """Run an entry point in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    ENTRIES[entry].main(given)


def run_bare(entry, given):
    """Run an entry point where no data library can be imported."""
    return subprocess.run([sys.executable, "-c", BARE, entry, *given], capture_output=True, text=True, timeout=300)


def launch(command, processes=1, **more):
    """Start a script with its arguments on CPUs, in one process or in several of torchrun."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*start, *map(str, command)], env=environment, stderr=subprocess.PIPE, text=True, **more)


def finish(process, timeout=300):
    """Wait for a started script to end well; what it wrote to stderr."""
    _, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors[-3000:]
    return errors
