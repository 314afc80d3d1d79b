"""The first ten minutes of search, on real long documents and without a download: `make demo`.

The documents are 108 stretches of about 8,000 tokens from the documentation of installed packages, none of which the
model has seen in training. They are indexed once. Questions, scores beside BM25 and the page in the browser use that
index. Another model folder is tried with `python examples/demo.py FOLDER`. Results: demo-output/search/.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its threads spin while they wait for a busy core
os.environ["HF_HUB_OFFLINE"] = "1"  # everything is here

import re
import sys
import textwrap
import time
from pathlib import Path

from m2bert.terminal import run_command

ROOT = Path(__file__).parents[1]
MODEL = Path("models/m2bert-small")  # this and the next from ROOT
OUT = Path("demo-output/search")
QUESTIONS = {  # with the section that answers; chosen for what the documents hold, not for what search finds
    "join two tables on the nearest time instead of on equal keys": "pandas.core.reshape.merge.merge_asof",
    "which nodes of a graph are the most important, judged by the links that point to them?":
        "networkx.algorithms.link_analysis.pagerank_alg.pagerank",
    "write the value of every bar into a bar chart": "matplotlib.axes._axes.Axes.bar_label",
    "ask the user to confirm before a command goes on": "click.termui.confirm",
    "how much disk space do the cached models take?": "huggingface_hub.utils._cache_manager.scan_cache_dir",
    "keep a password from showing up when a model is printed": "pydantic.types.SecretStr",
    "a walk that uses every edge of a graph exactly once": "networkx.algorithms.euler.eulerian_path",
    "check the arguments of a function against its type hints": "pydantic.validate_call_decorator.validate_call",
    "parse arithmetic with the right precedence of operators": "pyparsing.helpers.infix_notation",
    "arrange several plots in a layout that is written as text": "matplotlib.pyplot.subplot_mosaic",
}  # fmt: skip
HEADING = re.compile(r"(?:\A|\n\n(?=\w+\.))(\w+(?:\.\w+)*)\n")  # the name of what a section documents
begin = time.perf_counter()


def say(text: str):
    print(f"[{time.perf_counter() - begin:4.0f} s] {text}", flush=True)


def sections(text: str, start: int = 0, end: int | None = None) -> list[str]:
    """Return the names of the sections of a document that the characters [start, end) are in."""
    found = [*HEADING.finditer(text)]
    ends = [*(heading.start() for heading in found[1:]), len(text)]
    return [
        heading[1]
        for heading, after in zip(found, ends, strict=True)
        if heading.start() < (end or len(text)) and after > start
    ]


def ask(index, texts: dict[str, str], questions: dict[str, str]):
    """Print for every question what was expected, and whether BM25 and the index find it."""
    totals = {"BM25": 0, "words and vectors": 0, "passage": 0}
    for question, name in questions.items():
        expected = next((id for id, text in texts.items() if name in sections(text)), None)
        if expected is None:
            print(f"\n{question}\n  left out: these versions of the packages have no {name}")
            continue
        print(f"\n{question}\n  expected           {name} in {expected}")
        for side, mode in (("BM25", "bm25"), ("words and vectors", "hybrid")):
            best, *others = index.rank(question, mode, limit=len(texts))
            rank = others.index(expected) + 2 if expected in others else "none"
            totals[side] += best == expected
            print(f"  {side:17}  {'right' if best == expected else f'WRONG: {best}; the expected one has rank {rank}'}")
        [hit] = index.search(question, limit=1)
        shown = sections(texts[hit.id], hit.start, hit.end)
        totals["passage"] += name in shown
        mark = "right" if name in shown else "WRONG"
        print(f"  passage            {mark}: {shown[0]}, {hit.start / hit.length:.0%} into {hit.id}")
        print(textwrap.indent(textwrap.fill(" ".join(hit.passage.split()), 100, max_lines=3), " " * 21))
    print("\nright: " + ", ".join(f"{side} {count}" for side, count in totals.items()) + f" of {len(questions)}\n")


def evaluate(index, task):
    """Print nDCG@10 on the queries of pydocs, with 95 % intervals."""
    from m2bert.eval.search import score_metrics
    from m2bert.eval.statistics import align, mean_interval, paired_difference_interval, points

    rows, bm25 = [], None
    for name, mode in (("BM25", "bm25"), ("vectors", "dense"), ("words and vectors", "hybrid")):
        run = {qid: index.rank(query, mode) for qid, query in task.queries.items()}
        scores = score_metrics(run, task.qrels)["ndcg_at_10"]
        values, bm25 = list(scores.values()), bm25 or scores
        mean, (low, high) = sum(values) / len(values), mean_interval(values)
        gap = [] if scores is bm25 else [points(value) for value in paired_difference_interval(scores, bm25)]
        minus = f"{gap[0]} ({gap[1]} to {gap[2]})" if gap else ""
        rows.append([name, points(mean), f"({points(low)} to {points(high)})", minus])
    print(align(["", "nDCG@10", "95 % interval", "minus BM25"], rows))


def main(folder: Path):
    if not (folder / "modules.json").is_file():
        fix = "take the whole repository, models/ too, or name another model: python examples/demo.py FOLDER"
        raise ValueError(f"model={folder} is no folder of a sentence-transformers model; {fix}")
    from m2bert.eval.tasks.load import load_folder
    from m2bert.eval.tasks.pydocs import build_pydocs
    from m2bert.search import Index

    data, place = OUT / "pydocs", OUT / "pydocs.m2"
    say(f"python -m m2bert.eval.tasks.pydocs --output {data}")
    build_pydocs(data)
    [task] = load_folder(data, None, "test")
    say(f'index = Index.open("{place}", model="{folder}"); index.add(documents)')
    index = Index.open(place, model=folder)
    rows = ({"id": id, "text": text, "title": f"{sections(text)[0]} ..."} for id, text in task.documents.items())
    report = index.add(rows, sync=True)
    say(f"{report.added + report.updated} documents embedded ({report.tokens:,} tokens), {report.unchanged} unchanged")
    say("index.search(question) and index.rank(question, mode)")
    ask(index, task.documents, QUESTIONS)
    say(f"index.rank on the {len(task.queries)} queries of the task, each the first sentence of a section")
    evaluate(index, task)
    say("done. Search in the browser: run this, and open http://127.0.0.1:8000")
    print(f"         m2bert serve {place}")


if __name__ == "__main__":
    model_folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else MODEL
    os.chdir(ROOT)
    run_command("demo", lambda: main(model_folder))
