"""Negatives found by BM25: documents that share words with a query and do not answer it.

    python -m m2bert.train.pairs.mine_negatives --data DIR --negatives 32 --output FILE.parquet

FILE has the columns qid, negative_pids (best first), dataset; `data.negatives_path` of train/opl.py reads it.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from m2bert.eval.tasks.schema import RetrievalTask
from m2bert.files import write_atomically
from m2bert.records import free_output
from m2bert.terminal import run_command

from ..text.sources import refuse_test
from .data import load_split

SCORES_AT_ONCE = 2_000_000  # pairs scored between two updates of the progress bar: bounds memory


def mine(task: RetrievalTask, count: int) -> Iterator[dict]:
    """Yield rows of qid, negative_pids, dataset: for every query the `count` documents that BM25 ranks first among
    those that do not answer it; equal scores by descending id."""
    from m2bert.eval.rankers import Bm25Index

    pids = sorted(task.documents, reverse=True)
    index = Bm25Index(dataclasses.replace(task, documents={pid: task.documents[pid] for pid in pids}))
    qids, size = list(task.queries), max(1, SCORES_AT_ONCE // len(pids))
    with tqdm(total=len(qids), desc=f"BM25 on {task.name}", unit="query") as progress:
        for first in range(0, len(qids), size):
            chosen = qids[first : first + size]
            scores = index.scores([task.queries[qid] for qid in chosen])
            for qid, order in zip(chosen, np.argsort(-scores, axis=1, kind="stable"), strict=True):
                others = (pids[i] for i in order if pids[i] not in task.qrels[qid])
                progress.update()
                yield {"qid": qid, "negative_pids": list(islice(others, count)), "dataset": task.name}


def main(argv: list[str]):
    parser = argparse.ArgumentParser(description="Negatives found by BM25.")
    parser.add_argument("--data", required=True, help="folder as data.path of train/opl.py")
    parser.add_argument("--task", nargs="+", help="tasks in it; all by default")
    parser.add_argument("--negatives", type=int, default=32, help="negatives of each query")
    parser.add_argument("--split", default="train")
    parser.add_argument("--output", required=True, help="parquet file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    arguments = parser.parse_args(argv)
    refuse_test("--split", arguments.split)
    output = free_output(arguments.output, arguments.overwrite)
    tasks = load_split(None, Path(arguments.data), arguments.task, arguments.split)
    most = min(len(task.documents) - max(map(len, task.qrels.values())) for task in tasks)
    if not 1 <= arguments.negatives <= most:
        raise ValueError(
            f"--negatives={arguments.negatives} must be 1 to {most}, the fewest documents that do not answer a query"
        )
    rows = [row for task in tasks for row in mine(task, arguments.negatives)]
    write_atomically(output, lambda temporary: pq.write_table(pa.Table.from_pylist(rows), temporary))
    print(f"wrote {output}: {arguments.negatives} negatives for each of {len(rows)} queries")


if __name__ == "__main__":
    run_command("mine_negatives", lambda: main(sys.argv[1:]))
