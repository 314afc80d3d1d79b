"""Load the text of retrieval tasks to train on, and hold out a part of it for development.

Tasks come from folders of every kind that the evaluation reads, from data sets on the Hub, and from files of triples.
Training on the split `test`, or choosing a checkpoint by it, is an error.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from pydantic import model_validator

from m2bert.eval.tasks.kinds import kind_of
from m2bert.eval.tasks.load import load_folder
from m2bert.eval.tasks.schema import RetrievalTask, make_task
from m2bert.rows import read_rows
from m2bert.schema import FOREIGN, Schema, checked

from ..settings import check_splits

Negatives = dict[str, list[str]]  # the given negatives of a task's queries, {qid: pids}, best first


@dataclass
class RetrievalData:
    """What a run trains on and what it is measured on.

    Attributes:
        training: tasks with different names.
        development: tasks for choosing a checkpoint. Their queries are not in `training`.
        negatives: {task: {qid: pids}}, the negatives that the data give for training queries.
    """

    training: list[RetrievalTask]
    development: list[RetrievalTask]
    negatives: dict[str, Negatives] = field(default_factory=dict)

    def describe(self) -> dict[str, str]:
        """Return {split/task: fingerprint of the content}."""
        tasks = {f"{task.split}/{task.name}": task.fingerprint for task in self.training + self.development}
        if self.negatives:
            tasks["negatives"] = hashlib.sha256(repr(sorted(self.negatives.items())).encode()).hexdigest()
        return tasks

    def fingerprint(self) -> str:
        """Return the sha256 of what `describe` returns."""
        return hashlib.sha256(repr(sorted(self.describe().items())).encode()).hexdigest()


def load_data(settings, folder: Path | None) -> RetrievalData:
    """Load the tasks of the configuration's section `data`.

    Args:
        folder: a task folder of a kind in `m2bert.eval.tasks.kinds`. None if `settings.path` is a Hub id, or if the
            only data are triples.

    Raises:
        ValueError: the settings name the test split, or give negatives without using any; or the data cannot be read
            or split.
    """
    check_splits(settings)
    tasks = load_split(settings.path, folder, settings.tasks, "train")
    given = read_negatives(settings.negatives_path, tasks) if settings.negatives_path is not None else {}
    training, development, to_carve = [], [], tasks
    has_splits = folder is None or kind_of(folder) != "csv"
    if settings.development_split is not None and has_splits:
        names = settings.development_tasks or [task.name for task in tasks]
        training, to_carve = tasks, []
        development = load_split(settings.path, folder, names, settings.development_split)
    if settings.triples is not None:
        triples, negatives = load_triples(settings.triples, settings.triples_config, settings.triples_limit)
        if triples.name in (task.name for task in tasks):
            raise ValueError(f"data.triples={settings.triples} has the name of a task; rename the file")
        to_carve, given = [*to_carve, triples], given | {triples.name: negatives}
    if any(given.values()) and not settings.negatives:
        raise ValueError(
            "data.negatives=0 uses none of the negatives that data.negatives_path or data.triples gives; set it to how "
            "many each query takes, or give none"
        )
    held_texts = set().union(*(texts_to_hold_out(task, settings.development_share) for task in to_carve))
    for task in to_carve:
        train, held_out = carve(task, held_texts, settings.development_documents, settings.development_share)
        training.append(train)
        development.append(held_out)
    return RetrievalData(training, development, given)


def load_split(path: str | None, folder: Path | None, names: list[str] | None, split: str) -> list[RetrievalTask]:
    """Load a split of the named tasks (None: all tasks), with only the queries that have an answer.

    The tasks come from `folder`, or without one from the Hub data set `path`.
    """
    if folder is not None:
        return [answered(task) for task in load_folder(folder, names, split)]
    if path is None:
        return []
    from m2bert.eval.tasks.from_hub import load_hub_tasks

    return [answered(task) for task in load_hub_tasks(path, names, split, setting="data.path")]


def answered(task: RetrievalTask) -> RetrievalTask:
    """Return the task with only the judgments of relevant documents in it, and the queries that have one.

    It keeps the fingerprint of the whole task.
    """
    answers = {qid: task.answers(qid) for qid in task.qrels}
    qrels = {qid: {pid: task.qrels[qid][pid] for pid in pids} for qid, pids in answers.items() if pids}
    return replace(task, queries={qid: task.queries[qid] for qid in qrels}, qrels=qrels)


def texts_to_hold_out(task: RetrievalTask, share: float) -> set[str]:
    """Return the document texts of a task that are for development.

    They are about `share` of all texts, and at least one of them answers a query. Their hash chooses them, so that the
    choice stays when data are added or reordered.
    """
    answers = {task.documents[pid] for pids in task.qrels.values() for pid in pids}
    return {text for text in task.documents.values() if hash_share(text) < share} | {min(answers, key=hash_share)}


def carve(
    task: RetrievalTask, held_texts: set[str], pool_documents: int, share: float
) -> tuple[RetrievalTask, RetrievalTask]:
    """Split a task into one for training and one for development.

    Args:
        held_texts: what `texts_to_hold_out` returns, united over all tasks. The same text may occur in several tasks
            and under several ids.
        pool_documents: least number of documents in the development task. Training documents fill it up as
            distractors.
        share: the share of `texts_to_hold_out`, for the error message.

    Returns:
        Training and development. Every query with a held-out answer goes to development, and no held-out document
        stays in training.

    Raises:
        ValueError: no query is left for training.
    """
    held = {pid for pid, text in task.documents.items() if text in held_texts}
    held_queries = [qid for qid, answers in task.qrels.items() if held & answers.keys()]
    if len(held_queries) == len(task.queries):
        raise ValueError(
            f"task {task.name!r} has no query left for training once data.development_share={share} of its documents "
            "are held out; lower it, or name a data.development_split"
        )
    pool = held | {pid for qid in held_queries for pid in task.qrels[qid]}
    others = sorted(task.documents.keys() - pool, key=lambda pid: (hash_share(task.documents[pid]), pid))
    pool.update(others[: max(pool_documents - len(pool), 0)])
    training = restrict(task, "train", task.documents.keys() - held, task.queries.keys() - set(held_queries))
    return training, restrict(task, "development", pool, held_queries)


def hash_share(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def restrict(task: RetrievalTask, split: str, pids: Iterable[str], qids: Iterable[str]) -> RetrievalTask:
    """Return the task with only these documents and queries, in its own order. It keeps the fingerprint of the whole
    task."""
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
    """Read given negatives, {task: {qid: pids}}, from a parquet file as `mine_negatives` writes it.

    Its columns are those of `NegativesRow`. Rows of other tasks are left out.

    Raises:
        ValueError: the file cannot be read, a row does not fit, an id is unknown, or a negative answers its query.
    """
    by_name, negatives = {task.name: task for task in tasks}, {}
    for where, found in read_rows(Path(path), tuple(NegativesRow.model_fields)):
        row = checked(NegativesRow, found, where)
        task = by_name.get(row.dataset)
        if task is None:
            continue
        known = row.qid in task.queries and task.documents.keys() >= set(row.negative_pids)
        if not known or task.qrels[row.qid].keys() & set(row.negative_pids):
            raise ValueError(
                f"{where}: query {row.qid!r} and its negatives {row.negative_pids} must be in task {task.name!r}, and "
                "none may answer the query; mine the negatives of this data again"
            )
        negatives.setdefault(task.name, {})[row.qid] = row.negative_pids
    return negatives


class Triple(Schema):
    """A row of `data.triples`. Every column whose name begins with "negative" holds a negative, or null for none."""

    query: str
    positive: str
    negatives: dict[str, str | None]

    @model_validator(mode="before")
    @classmethod
    def _gather_negatives(cls, row):
        if not isinstance(row, dict):
            return row
        fixed = {name: row[name] for name in ("query", "positive") if name in row}
        return fixed | {"negatives": {name: text for name, text in row.items() if name.startswith("negative")}}


def load_triples(source: str, config: str | None, limit: int | None) -> tuple[RetrievalTask, Negatives]:
    """Load a task and its given negatives from rows of (query, positive, negatives).

    Equal texts become one query or one document. A text that is both positive and negative of a query counts as
    positive.

    Args:
        source: parquet or JSON-lines file, or Hub id; see `Triple` for its columns.
        config: name of the configuration of the Hub data set.
        limit: number of rows to read; None reads all.

    Raises:
        ValueError: the source cannot be read or is empty, or a row does not fit `Triple`.
    """
    path, columns = Path(source), ("query", "positive")
    if path.is_file():
        rows = islice(read_rows(path, columns, prefix="negative"), limit)
    else:
        from m2bert.eval.tasks.from_hub import load_table

        where, split = f"data.triples={source}", "train" if limit is None else f"train[:{limit}]"
        table, _ = load_table(source, config, split, where, "a local data.triples is a parquet or JSON-lines file")
        read = [name for name in table.column_names if name in columns or name.startswith("negative")]
        rows = ((f"{where}, row {number}", row) for number, row in enumerate(table.select(read).to_pylist(), 1))
    queries, documents, answers, negatives = {}, {}, {}, {}
    for where, row in rows:
        triple = checked(Triple, row, where)
        qid, positive = text_id(triple.query), text_id(triple.positive)
        queries[qid], documents[positive] = triple.query, triple.positive
        answers.setdefault(qid, []).append(positive)
        for text in filter(None, triple.negatives.values()):
            documents[text_id(text)] = text
            negatives.setdefault(qid, []).append(text_id(text))
    query_rows = [{"qid": qid, "query": text, "answer_pids": answers[qid]} for qid, text in queries.items()]
    name = Path(path.name.removesuffix(".gz")).stem
    task = make_task(name, "train", query_rows, [{"pid": pid, "passage": text} for pid, text in documents.items()])
    return task, {
        qid: [pid for pid in dict.fromkeys(pids) if pid not in task.qrels[qid]] for qid, pids in negatives.items()
    }


def text_id(text: str) -> str:
    """Return an id that depends on the text alone."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]
