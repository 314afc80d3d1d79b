"""Retrieval tasks to train on, as text: folders in the LoCoV1 schema, Hub data sets, triples; and a development part.

The split `test` is for the last evaluation alone and refused wherever training could see it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from m2bert.eval.tasks.locov1 import RetrievalTask, load_task, task_names
from m2bert.schema import FOREIGN, Schema, checked

from ..settings import check_splits
from .parquet import read_rows
from .triples import Negatives, load_triples


@dataclass
class RetrievalData:
    """What a run trains on and what it is measured on.

    Attributes:
        training: tasks, of different names.
        development: tasks for choosing a checkpoint; no query of theirs is in `training`.
        negatives: {task: {qid: pids}}, given negatives of training queries.
    """

    training: list[RetrievalTask]
    development: list[RetrievalTask]
    negatives: dict[str, Negatives] = field(default_factory=dict)

    def describe(self) -> dict[str, str]:
        """{split/task: fingerprint of the content}."""
        tasks = {f"{task.split}/{task.name}": task.fingerprint for task in self.training + self.development}
        if self.negatives:
            tasks["negatives"] = hashlib.sha256(repr(sorted(self.negatives.items())).encode()).hexdigest()
        return tasks

    def fingerprint(self) -> str:
        """sha256 of the description."""
        return hashlib.sha256(repr(sorted(self.describe().items())).encode()).hexdigest()


def load_data(settings, folder: Path | None) -> RetrievalData:
    """The tasks of the configuration's section `data`.

    Args:
        folder: of data in the LoCoV1 schema, or None where `settings.path` is a Hub id or there are triples alone.

    Raises:
        ValueError: an unknown task, the test split, a task too small to carve, unreadable triples or negatives, or
            given negatives that `settings.negatives=0` would not use.
    """
    check_splits(settings)
    tasks = load_split(settings.path, folder, settings.tasks, "train")
    given = read_negatives(settings.negatives_path, tasks) if settings.negatives_path is not None else {}
    training, development, carve_from = [], [], tasks
    if settings.development_split is not None:
        names = settings.development_tasks or [task.name for task in tasks]
        training, carve_from = tasks, []
        development = load_split(settings.path, folder, names, settings.development_split)
    if settings.triples is not None:
        triples, negatives = load_triples(settings.triples, settings.triples_config, settings.triples_limit)
        if triples.name in (task.name for task in tasks):
            raise ValueError(f"data.triples={settings.triples} has the name of a task; rename the file")
        carve_from, given = [*carve_from, triples], given | {triples.name: negatives}
    if any(given.values()) and not settings.negatives:
        raise ValueError(
            "data.negatives=0 uses none of the negatives that data.negatives_path or data.triples gives; set it to how "
            "many each query takes, or give none"
        )
    held_texts = set().union(*(set_aside(task, settings.development_share) for task in carve_from))
    for task in carve_from:
        train, held = carve(task, held_texts, settings.development_documents, settings.development_share)
        training.append(train)
        development.append(held)
    return RetrievalData(training, development, given)


def load_split(path: str | None, folder: Path | None, names: list[str] | None, split: str) -> list[RetrievalTask]:
    """The named tasks of a split, or all; from a folder, or else from the Hub."""
    if folder is not None:
        if not folder.is_dir():
            raise ValueError(
                f"data.path={folder} is no folder; name one with queries/{split}.parquet and documents/{split}.parquet"
            )
        return [load_task(folder, name, split) for name in names or task_names(folder, split)]
    if path is None:
        return []
    from m2bert.eval.tasks.from_hub import load_hub_tasks

    return load_hub_tasks(path, names, split, setting="data.path")


def set_aside(task: RetrievalTask, share: float) -> set[str]:
    """The texts of a task that are for development: a share of all texts, by hash, so that it stays the same when data
    are added or reordered; and at least one that answers a query.
    """
    answers = {task.documents[pid] for pids in task.qrels.values() for pid in pids}
    return {text for text in task.documents.values() if hash_share(text) < share} | {min(answers, key=hash_share)}


def carve(
    task: RetrievalTask, held_texts: set[str], pool_documents: int, share: float
) -> tuple[RetrievalTask, RetrievalTask]:
    """Set documents aside for development.

    Args:
        held_texts: what `set_aside` gives, of all tasks: a text may stand in several, and under several ids.
        pool_documents: least size of the development pool. Training documents fill it up as distractors.
        share: named in the error.

    Returns:
        Training and development. Every query with an answer set aside goes to development, and the documents set
        aside leave training.

    Raises:
        ValueError: no query is left for training.
    """
    held = {pid for pid, text in task.documents.items() if text in held_texts}
    held_queries = [qid for qid, answers in task.qrels.items() if held & answers.keys()]
    if len(held_queries) == len(task.queries):
        raise ValueError(
            f"task {task.name!r} has no query left for training once data.development_share={share} of its documents "
            "are set aside; lower it, or name a data.development_split"
        )
    pool = held | {pid for qid in held_queries for pid in task.qrels[qid]}
    others = sorted(task.documents.keys() - pool, key=lambda pid: (hash_share(task.documents[pid]), pid))
    pool.update(others[: max(pool_documents - len(pool), 0)])
    training = restrict(task, "train", task.documents.keys() - held, task.queries.keys() - set(held_queries))
    return training, restrict(task, "development", pool, held_queries)


def hash_share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def restrict(task: RetrievalTask, split: str, pids: Iterable[str], qids: Iterable[str]) -> RetrievalTask:
    """The task with these documents and queries alone, in its own order. The fingerprint stays that of the whole."""
    pids, qids = set(pids), set(qids)
    return replace(
        task,
        split=split,
        documents={pid: text for pid, text in task.documents.items() if pid in pids},
        queries={qid: text for qid, text in task.queries.items() if qid in qids},
        qrels={qid: answers for qid, answers in task.qrels.items() if qid in qids},
    )


class NegativesRow(Schema):
    """A row of `data.negatives_path`."""

    model_config = FOREIGN
    qid: str
    negative_pids: list[str]
    dataset: str


def read_negatives(path: str, tasks: list[RetrievalTask]) -> dict[str, Negatives]:
    """Read given negatives, {task: {qid: pids}}, from a parquet file with columns qid, negative_pids, dataset
    (`mine_negatives` writes such). Rows of other tasks are left out.

    Raises:
        ValueError: the file or a column is missing, a row holds something else, an id is unknown, or a negative answers
            its query.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"data.negatives_path={path} is no file; name one that m2bert.train.pairs.mine_negatives wrote"
        )
    by_name, negatives = {task.name: task for task in tasks}, {}
    for number, found in enumerate(read_rows(path, list(NegativesRow.model_fields)), 1):
        row = checked(NegativesRow, found, f"{path}, row {number}")
        qid, task = row.qid, by_name.get(row.dataset)
        if task is None:
            continue
        if qid not in task.queries:
            raise ValueError(f"{path}: task {task.name!r} has no query {qid!r}; mine the negatives of this data anew")
        for pid in row.negative_pids:
            if pid not in task.documents:
                raise ValueError(f"{path}: task {task.name!r} has no document {pid!r}; mine the negatives anew")
            if pid in task.qrels[qid]:
                raise ValueError(f"{path}: document {pid!r} answers query {qid!r} and cannot be its negative")
        negatives.setdefault(task.name, {})[qid] = row.negative_pids
    return negatives
