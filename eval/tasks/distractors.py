"""Harder pools: documents that answer nothing, added to a task from any collection of text."""

import logging
import random
import sys
from dataclasses import replace
from pathlib import Path

from ..analyses.clusters import read_source
from .locov1 import RetrievalTask, fingerprint_of

logger = logging.getLogger(__name__)

PREFIX = "distractor_"


def add_distractors(task: RetrievalTask, texts_from: str | Path, count: int, seed: int = 0) -> RetrievalTask:
    """Return the task with `count` more documents; its name gains " +count".

    Each is cut at the length of one of the task's own documents, drawn by chance, so that none stands out by being
    longer. Texts shorter than that stay as they are. A text that the task already has, or that came before, is not
    taken.

    Args:
        texts_from: a parquet file with a column `text` or `passage`, a folder of such files, or the folder of a task.
            Of a folder with splits, `train` is read.
        seed: the same seed draws the same texts and lengths.

    Raises:
        ValueError: count < 1, the task has distractors already, the texts cannot be read, or they are fewer.
    """
    if count < 1:
        raise ValueError(f"distractor count={count} adds nothing; it must be at least 1")
    if any(pid.startswith(PREFIX) for pid in task.documents):
        raise ValueError(
            f"task {task.name!r} already has documents called {PREFIX}...; add distractors to the original"
        )
    generator = random.Random(f"{seed} {task.fingerprint}")
    lengths_chars = sorted(len(text) for text in task.documents.values() if text)
    taken = set(task.documents.values())
    added: dict[str, str] = {}
    cut = 0
    for whole in read_source(Path(texts_from).expanduser(), sys.maxsize, "train", seed):  # all, shuffled
        text = whole[: generator.choice(lengths_chars)]
        if whole not in taken and text not in taken:
            taken |= {whole, text}
            added[f"{PREFIX}{len(added):06d}"] = text
            cut += len(text) < len(whole)
            if len(added) == count:
                break
    else:
        raise ValueError(
            f"{texts_from} has {len(added)} texts that task {task.name!r} lacks, not {count}; ask for fewer"
        )
    logger.info("task %s: %d of %d distractors are cut to the length of a document", task.name, cut, count)
    documents = task.documents | added
    return replace(
        task,
        name=f"{task.name} +{count}",
        documents=documents,
        fingerprint=fingerprint_of(task.queries, documents, task.qrels),
    )
