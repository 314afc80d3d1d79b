"""Score `Index.rank` on QMSUM and pydocs: by words, by vectors, and both; results/quality.json.

    python experiments/search/quality.py QMSUM_FOLDER PYDOCS_FOLDER

The weight of the last row is chosen on the validation split, as `m2bert eval --hybrid weighted` chooses it.
"""

import json
import sys
import tempfile
from pathlib import Path
from statistics import mean

from m2bert.eval.search import choose_weight, score_metrics
from m2bert.eval.tasks.load import load_folder
from m2bert.search import Index

MODEL = "models/m2bert-small"
RESULTS = Path(__file__).parent / "results" / "quality.json"


def ranked(index: Index, task, mode: str, weight: float | None = None) -> dict[str, dict[str, float]]:
    return {qid: index.rank(query, mode, weight=weight) for qid, query in task.queries.items()}


def ndcg(run: dict, task) -> float:
    return 100 * mean(score_metrics(run, task.qrels)["ndcg_at_10"].values())


def indexed(task, folder: str) -> Index:
    index = Index.open(folder, model=MODEL)
    index.add({"id": pid, "text": text} for pid, text in task.documents.items())
    return index


def main(folders: list[str]):
    results = {}
    for folder in folders:
        [task] = load_folder(Path(folder), None, "test")
        [development] = load_folder(Path(folder), None, "validation")
        with tempfile.TemporaryDirectory() as scratch:
            index = indexed(development, f"{scratch}/development")
            weight, _ = choose_weight(
                ranked(index, development, "dense"), ranked(index, development, "bm25"), development.qrels
            )
            index = indexed(task, f"{scratch}/test")
            scores = {mode: ndcg(ranked(index, task, mode), task) for mode in ("bm25", "dense", "hybrid")}
            scores["hybrid, weight of development data"] = ndcg(ranked(index, task, "hybrid", weight), task)
        results[task.name] = scores | {"weight": weight}
        print(task.name, results[task.name], flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
