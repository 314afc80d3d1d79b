"""The whole life of a small M2-BERT in a few minutes on two CPU cores: `make demo-train`.

Data, tokenizer, masked-language-model pretraining, retrieval fine-tuning, export as a Hub folder, loading in a clean
process, evaluation of it and of BM25. Every step is a command that a user would type; this file runs them in order, and
trains the controls on the second core meanwhile. Results: demo-output/{results.json,demo.png,m2bert-demo/}.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "demo-output"
ALLOCATOR = {  # fresh pages are slow on virtual machines: let the allocator keep what it has
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
ONE_RATE = [f"optim.{part}_lr=null" for part in ("layer", "filter", "pooler")]
STANDARD = ["model.start=standard", "optim.lr=1e-3", *ONE_RATE]
MEAN_POOLING = ["model.architecture.pooling=mean", "model.architecture.num_pooling_heads=1"]

begin = time.perf_counter()


def say(text: str):
    print(f"[{time.perf_counter() - begin:5.0f} s] {text}", flush=True)


def run(*arguments, threads: int = 1, log: Path | None = None):
    """Run a Python command; with `log` its output goes there."""
    env = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    env["ACCELERATE_USE_CPU"] = "true"
    command = [sys.executable, *map(str, arguments)]
    with log.open("a") if log else contextlib.nullcontext() as output:
        code = subprocess.run(command, cwd=OUT, env=env, stdout=output, stderr=output).returncode
    if code:
        raise SystemExit(f"demo: exit code {code}{f', see {log}' if log else ''}: {' '.join(command)}")


def m2bert(*arguments, **options):
    run("-m", "m2bert.cli", *arguments, **options)


def train(entry: str, name: str, *overrides: str, log: Path | None = None):
    """Run `m2bert train ENTRY` on one thread: two arms run side by side."""
    data = "data.sources=[{path: pydocs}]" if entry == "mlm" else "data.path=pydocs"
    m2bert("train", entry, data, f"output_dir={name}", *overrides, log=log)


def train_controls(log: Path):
    """Train what the model is compared with: standard initialization, with and without training, and no layers."""
    train("mlm", "mlm-standard", *STANDARD, *MEAN_POOLING, log=log)
    train("opl", "standard", "model.path=mlm-standard", *STANDARD, log=log)
    new = "tokenizer.path=mlm-standard"
    train("opl", "layer-free", new, "model.architecture.num_hidden_layers=0", log=log)
    train("opl", "untrained", new, "steps=0", *STANDARD, *MEAN_POOLING, log=log)


def make_empty(folder: Path):
    """Remove what an earlier run left in this folder, but for the results of the search demo."""
    folder.mkdir(exist_ok=True)
    for path in {*folder.iterdir()} - {folder / "search"}:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def main():
    say("a small M2-BERT from scratch, on this machine's CPU. It shows the whole life cycle; it is no model to use.")
    make_empty(OUT)
    say("data: documentation strings of installed packages, read without importing them")
    run("-m", "m2bert.eval.tasks.pydocs", "--output", "pydocs")
    second_core = ThreadPoolExecutor(1)
    controls = second_core.submit(train_controls, OUT / "controls.log")
    say("meanwhile the controls train on the second core: demo-output/controls.log")
    say("m2bert train mlm")
    train("mlm", "mlm")
    say("m2bert train opl model.path=mlm")
    train("opl", "trained", "model.path=mlm")
    say("m2bert export --model trained --output m2bert-demo")
    m2bert("export", "--model", "trained", "--output", "m2bert-demo")
    say("loading the folder in a process that cannot import this project")
    run(ROOT / "experiments" / "speed" / "load_matrix.py", "m2bert-demo", "--ways", "AutoModel,SentenceTransformer")
    say("the start of the same model, before any training")
    train("mlm", "mlm-start", "steps=0", log=OUT / "start.log")
    train("opl", "start", "model.path=mlm-start", "steps=0", log=OUT / "start.log")
    say("waiting for the controls")
    controls.result()
    say("m2bert eval on the test split: packages that no model has seen")
    encoders = ["bm25", "tfidf-rp", "m2bert-demo", "layer-free", "standard", "start", "untrained"]
    names = [part for encoder in encoders for part in ("--encoder", encoder)]
    task = ["--data", "pydocs", "--task", "pydocs", "--split", "test", "--policy", "truncate"]
    m2bert("eval", *names, *task, "--output", "results.json", threads=2)
    run(ROOT / "experiments" / "pages.py", "demo-train", OUT)
    say("done")


if __name__ == "__main__":
    main()
