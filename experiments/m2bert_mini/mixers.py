"""Compare students with different mixers in retrieval by meaning, alone and beside BM25.

    python experiments/m2bert_mini/mixers.py --data ../shared/data --pydocs FOLDER --output F.json MODEL...

A model is a folder that a run of mixers.sh or stretches.sh wrote. One with "attention" in its name has attention, and a
token sees the window of WINDOW tokens that it is in, as in training. The test splits of four tasks are scored, or, with
--development in place of --pydocs, the development data of development.py. A document has 16 late chunks with its own
vector added. Every model is compared with the first: the mean over tasks weighs them alike, and its interval resamples
the queries within each task.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

from development import TASKS, load_development, task_scores

from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.eval.statistics import align, mean_over_tasks
from m2bert.eval.tasks.load import load_folder

sys.path.append(str(Path(__file__).parents[1] / "replicas"))
from twins import attention_encoder

WINDOW = 512


def load_tests(data: Path, pydocs: Path) -> dict:
    """Return {name: task}, the test splits of four tasks."""
    folders = [data / "openstax_question", data / "acl_citance", data / "locov1_qmsum", pydocs]
    return {folder.name: load_folder(folder, None, "test")[0] for folder in folders}


def score(model: Path, tasks: dict) -> dict[str, list[dict[str, float]]]:
    """Return {task: [{qid: nDCG@10} alone, the same beside BM25]}."""
    encoder = attention_encoder(str(model), WINDOW) if "attention" in model.name else SentenceTransformerEncoder(model)
    found = {}
    for name, task in tasks.items():
        [(_, *found[name])] = task_scores(encoder, task, encoder.dimensions, [0])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    split = parser.add_mutually_exclusive_group(required=True)
    split.add_argument("--pydocs", type=Path)
    split.add_argument("--development", action="store_true")
    parser.add_argument("--processes", type=int, default=1, help="models scored at once")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if options.development:
        tasks = {folder: load_development(options.data / folder, split) for folder, split in TASKS.items()}
    else:
        tasks = load_tests(options.data, options.pydocs)
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        scores = list(pool.map(score, options.models, repeat(tasks)))
    rows = []
    for place, kind in enumerate(("alone", "beside BM25")):
        by_task = {name: [found[name][place] for found in scores] for name in tasks}
        over = mean_over_tasks(list(by_task.values()))
        for number, (model, ours) in enumerate(zip(options.models, over, strict=True)):
            means = {name: sum(each[number].values()) / len(each[number]) for name, each in by_task.items()}
            low, high = ours.difference_interval
            row = {"model": model.name, "how": kind, **means, "mean": ours.mean, "difference": ours.difference}
            rows.append(row | {"low": low, "high": high})
    print(align(list(rows[0]), [[*row.values()][:2] + [f"{100 * x:.1f}" for x in [*row.values()][2:]] for row in rows]))
    lines = ",\n".join(map(json.dumps, rows))
    options.output.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
