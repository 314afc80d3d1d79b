"""Retrieval tasks to train on, as text: folders in the LoCoV1 schema, Hub data sets, triples; and a development part.

The split `test` is for the last evaluation alone and refused wherever training could see it.
"""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.json
import pyarrow.parquet as pq

from m2bert_eval.locov1 import RetrievalTask, load_task, make_task, task_names

logger = logging.getLogger(__name__)

Negatives = dict[str, list[str]]  # {qid: pids}, best first


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


def refuse_test(key: str, value: str | None):
    """Raise ValueError if a setting names the test split, or a file of it."""
    if value is not None and Path(value).name.split(".")[0].split("-")[0] == "test":
        raise ValueError(f"{key}={value} is the test split; it is for the last evaluation alone. Name another")


def load_data(settings, folder: Path | None) -> RetrievalData:
    """The tasks of the configuration's section `data`.

    Args:
        folder: of data in the LoCoV1 schema, or None where `settings.path` is a Hub id or there are triples alone.

    Raises:
        ValueError: an unknown task, the test split, a task too small to carve, unreadable triples or negatives.
    """
    for key in ("development_split", "triples", "negatives_path"):
        refuse_test(f"data.{key}", getattr(settings, key))
    if settings.tasks is not None and not isinstance(settings.tasks, list):
        raise ValueError(f"data.tasks={settings.tasks!r} must be a list of names, or null for all tasks")
    tasks = load_split(settings.path, folder, settings.tasks, "train")
    given = read_negatives(settings.negatives_path, tasks) if settings.negatives_path is not None else {}
    training, development, carve_from = [], [], tasks
    if settings.development_split is not None:
        names = [task.name for task in tasks]
        training, carve_from = tasks, []
        development = load_split(settings.path, folder, names, settings.development_split)
    if settings.triples is not None:
        triples, negatives = load_triples(settings.triples, settings.triples_config, settings.triples_limit)
        if triples.name in (task.name for task in tasks):
            raise ValueError(f"data.triples={settings.triples} has the name of a task; rename the file")
        carve_from, given = [*carve_from, triples], given | {triples.name: negatives}
    for task in carve_from:
        train, held = carve(task, settings.development_share, settings.development_documents)
        training.append(train)
        development.append(held)
    return RetrievalData(training, development, given)


def load_split(path: str | None, folder: Path | None, names: list[str] | None, split: str) -> list[RetrievalTask]:
    """The named tasks of a split, or all; from a folder, or else from the Hub."""
    if folder is not None:
        return [load_task(folder, name, split) for name in names or task_names(folder, split)]
    if path is None:
        return []
    from .hub_tasks import load_hub_tasks

    return load_hub_tasks(path, names, split)


def carve(task: RetrievalTask, share: float, pool_documents: int) -> tuple[RetrievalTask, RetrievalTask]:
    """Set a part of the documents aside for development, chosen by the hash of their ids, so that it stays the same
    when data are added or reordered.

    Args:
        share: of the documents, 0 < share < 1; at least one that answers a query.
        pool_documents: size of the development pool. Training documents fill it up as distractors.

    Returns:
        Training and development. Every query with an answer set aside goes to development, and the documents set
        aside leave training.

    Raises:
        ValueError: share is outside (0, 1), or no query is left for training.
    """
    if not 0 < share < 1:
        raise ValueError(f"data.development_share={share} must be more than 0 and less than 1")
    place = {pid: hash_share(pid) for pid in task.documents}
    first = min((pid for answers in task.qrels.values() for pid in answers), key=place.__getitem__)
    held = {pid for pid in task.documents if place[pid] < share} | {first}
    held_queries = [qid for qid, answers in task.qrels.items() if held & answers.keys()]
    if len(held_queries) == len(task.queries):
        raise ValueError(
            f"task {task.name!r} has no query left for training once data.development_share={share} of its documents "
            "are set aside; lower it, or name a data.development_split"
        )
    pool = held | {pid for qid in held_queries for pid in task.qrels[qid]}
    others = sorted(task.documents.keys() - pool, key=place.__getitem__)
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


def read_negatives(path: str, tasks: list[RetrievalTask]) -> dict[str, Negatives]:
    """Given negatives, {task: {qid: pids}}, from a parquet file with columns qid, negative_pids, dataset
    (`mine_negatives` writes such). Rows of other tasks are left out.

    Raises:
        ValueError: the file or a column is missing, an id is unknown, or a negative answers its query.
    """
    columns = ["qid", "negative_pids", "dataset"]
    if not Path(path).is_file() or not set(columns) <= set(pq.read_schema(path).names):
        raise ValueError(f"data.negatives_path={path} is no parquet file with the columns {', '.join(columns)}")
    by_name, negatives = {task.name: task for task in tasks}, {}
    for row in pq.read_table(path, columns=columns).to_pylist():
        qid, pids, task = row["qid"], row["negative_pids"], by_name.get(row["dataset"])
        if task is None:
            continue
        if qid not in task.queries:
            raise ValueError(f"{path}: task {task.name!r} has no query {qid!r}; mine the negatives of this data anew")
        for pid in pids:
            if pid not in task.documents:
                raise ValueError(f"{path}: task {task.name!r} has no document {pid!r}; mine the negatives anew")
            if pid in task.qrels[qid]:
                raise ValueError(f"{path}: document {pid!r} answers query {qid!r} and cannot be its negative")
        negatives.setdefault(task.name, {})[qid] = pids
    return negatives


def load_triples(source: str, config: str | None, limit: int | None) -> tuple[RetrievalTask, Negatives]:
    """A task from rows of (query, positive, negatives), and its given negatives; equal texts become one.

    Args:
        source: parquet or JSON-lines file, or Hub id; columns query, positive, and none or more whose names begin with
            negative.
        config: of the Hub data set.
        limit: number of rows to read; None reads all.

    Raises:
        ValueError: the source cannot be read, or lacks a column.
    """
    path = Path(source)
    if path.suffix == ".parquet" and path.is_file():
        table = pq.read_table(path)
    elif path.suffix in (".jsonl", ".json") and path.is_file():
        table = pyarrow.json.read_json(path)
    elif not path.exists() and not path.suffix:
        from .hub_tasks import load_hub_rows

        table = load_hub_rows(source, config, limit)
    else:
        raise ValueError(f"data.triples={source} is no parquet file, JSON-lines file or Hub id; name one")
    missing = {"query", "positive"} - set(table.column_names)
    if missing:
        raise ValueError(f"data.triples={source} lacks the column {min(missing)!r}; it has {table.column_names}")
    columns = [name for name in table.column_names if name.startswith("negative")]
    return triples_task(path.stem, table.slice(0, limit).select(["query", "positive", *columns]).to_pylist(), columns)


def triples_task(name: str, rows: list[dict], columns: list[str]) -> tuple[RetrievalTask, Negatives]:
    """See `load_triples`. A text that is both positive and negative of a query is its positive."""
    queries, documents, answers, negatives = {}, {}, {}, {}
    for row in rows:
        qid, positive = text_id(row["query"]), text_id(row["positive"])
        queries[qid], documents[positive] = row["query"], row["positive"]
        answers.setdefault(qid, []).append(positive)
        for text in filter(None, (row[column] for column in columns)):
            documents[text_id(text)] = text
            negatives.setdefault(qid, []).append(text_id(text))
    query_rows = [{"qid": qid, "query": text, "answer_pids": answers[qid]} for qid, text in queries.items()]
    document_rows = [{"pid": pid, "passage": text} for pid, text in documents.items()]
    task = make_task(name, "train", query_rows, document_rows)
    return task, {
        qid: [pid for pid in dict.fromkeys(pids) if pid not in task.qrels[qid]] for qid, pids in negatives.items()
    }


def text_id(text: str) -> str:
    """An id that depends on the text alone."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]
