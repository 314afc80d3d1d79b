"""Search real long documents with the model that comes with this repository: `make demo`.

The documents are 108 stretches of about 8,000 tokens from the documentation of installed packages, none of which the
model has seen in training. Search needs sentence-transformers alone; then `m2bert eval` scores the model and BM25.
Another model folder is searched with `python examples/demo.py FOLDER`. Results: demo-output/search/.
"""

import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = Path("models/m2bert-small")  # this and the next from ROOT
OUT = Path("demo-output/search")
QUESTIONS = [  # chosen for what the documents hold, not for what the model finds
    "join two tables on the nearest time instead of on equal keys",
    "which nodes of a graph are the most important, judged by the links that point to them?",
    "write the value of every bar into a bar chart",
    "ask the user to confirm before a command goes on",
    "how much disk space do the cached models take?",
    "keep a password from showing up when a model is printed",
]
BEST = 3  # documents shown for a question
SECTION = re.compile(r"(?:\A|\n\n)(\w+(?:\.\w+)*)\n(.*?)(?=\Z|\n\n\w+(?:\.\w+)+\n)", re.DOTALL)  # name, text

begin = time.perf_counter()


def say(text: str):
    print(f"[{time.perf_counter() - begin:4.0f} s] {text}", flush=True)


def run(*command: str | Path):
    """Show a command that a user would type, and run it by this Python."""
    words = [str(word) for word in command]
    say(f"{'m2bert' if words[0] == 'm2bert.cli' else f'python -m {words[0]}'} {' '.join(words[1:])}")
    code = subprocess.run([sys.executable, "-m", *words]).returncode
    if code:
        raise SystemExit(code)  # the command has said why


def search(model, documents: list[str], questions: list[str]):
    """Print for every question the documents that fit best, and of each the section that does."""
    vectors = model.encode_document(documents, batch_size=1, show_progress_bar=True)
    queries = model.encode_query(questions, show_progress_bar=False)
    for question, query, scores in zip(questions, queries, model.similarity(queries, vectors), strict=True):
        print(f"\n{question}")
        for score, number in zip(*(values.tolist() for values in scores.topk(BEST)), strict=True):
            sections = list(SECTION.finditer(documents[number]))
            texts = [section[0].strip() for section in sections]
            fits = model.similarity(query, model.encode_document(texts, show_progress_bar=False))
            best = sections[int(fits.argmax())]
            print(f"  {score:.2f}  document {number}, {best.start(1) / len(documents[number]):.0%} into it: {best[1]}")
            print(f"        {textwrap.shorten(best[2], 100, placeholder=' ...')}")
    print(flush=True)


def main(folder: Path):
    if not (folder / "modules.json").is_file():
        print(f"demo: model={folder} is no folder of a sentence-transformers model; take the whole repository, models/ "
              "too, or name another model: python examples/demo.py FOLDER", file=sys.stderr)  # fmt: skip
        sys.exit(2)
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is here
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of torch that wait for a busy core spin, and slow all down
    data, results = OUT / "pydocs", OUT / "results.json"
    run("m2bert.eval.tasks.pydocs", "--output", data)
    say(f'SentenceTransformer("{folder}", trust_remote_code=True)')
    import pyarrow.parquet as pq
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = SentenceTransformer(str(folder), trust_remote_code=True)
    search(model, pq.read_table(data / "documents" / "test.parquet")["passage"].to_pylist(), QUESTIONS)
    task = ["--data", data, "--policy", "truncate", "--policy", "late-chunk", "--hybrid", "weighted", "--no-cache"]
    encoders = ["--encoder", "bm25", "--encoder", folder]
    run("m2bert.cli", "eval", *encoders, *task, "--output", results, "--overwrite")
    run("m2bert.cli", "compare", results, "--against", "bm25")
    run("m2bert.cli", "report", results, "--output", OUT / "report.html", "--overwrite")
    say(f"done: {OUT}/report.html, {results}")


if __name__ == "__main__":
    model_folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else MODEL
    os.chdir(ROOT)
    main(model_folder)
