"""A retrieval task from tables in the schema of LoCoV1 (hazyresearch/LoCoV1-Queries and -Documents)."""

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

QUERY_COLUMNS = ("qid", "query", "answer_pids", "dataset")
DOCUMENT_COLUMNS = ("pid", "passage", "dataset")


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, the documents to search, and which documents answer which query.

    Attributes:
        queries: {qid: text}.
        documents: {pid: passage}; a passage may be the empty text.
        qrels: {qid: {pid: 1}} over all queries, at least one answer each.
        fingerprint: sha256 of the content.
    """

    name: str
    split: str
    queries: dict[str, str]
    documents: dict[str, str]
    qrels: dict[str, dict[str, int]]
    fingerprint: str


def load_task(data_dir: str | Path, task: str, split: str) -> RetrievalTask:
    """Read the rows with `dataset == task` of queries/SPLIT.parquet and documents/SPLIT.parquet.

    Raises:
        ValueError: a file or column is missing, the task is unknown, an id occurs twice, a query has no
            answer, or an answer names a document that is not there.
    """
    data_dir = Path(data_dir)
    query_rows = _read_rows(data_dir / "queries" / f"{split}.parquet", QUERY_COLUMNS, task)
    document_rows = _read_rows(data_dir / "documents" / f"{split}.parquet", DOCUMENT_COLUMNS, task)
    return make_task(task, split, query_rows, document_rows)


def task_names(data_dir: str | Path, split: str) -> list[str]:
    """Names of the tasks in documents/SPLIT.parquet, sorted.

    Raises:
        ValueError: the file or its column is missing.
    """
    path = Path(data_dir) / "documents" / f"{split}.parquet"
    return _names(_read_table(path, ("dataset",)))


def make_task(task: str, split: str, query_rows: list[dict], document_rows: list[dict]) -> RetrievalTask:
    """A task from its rows, wherever they come from; see `load_task` for columns and errors."""
    for what, rows in (("queries", query_rows), ("documents", document_rows)):
        if not rows:
            raise ValueError(f"task {task!r} has no {what} in the split {split!r}; add some, or leave the task out")
    documents = _by_id(document_rows, "pid", "passage")
    queries = _by_id(query_rows, "qid", "query")
    qrels = {row["qid"]: dict.fromkeys(row["answer_pids"] or [], 1) for row in query_rows}
    for qid, answers in qrels.items():
        if not answers:
            raise ValueError(f"query {qid!r} of task {task!r} has no answer_pids; remove it or name some")
        unknown = sorted(set(answers) - documents.keys())
        if unknown:
            raise ValueError(f"answer_pids of query {qid!r} name {unknown[0]!r}, which no document has as pid")
    content = json.dumps([queries, documents, qrels], sort_keys=True)
    return RetrievalTask(task, split, queries, documents, qrels, hashlib.sha256(content.encode()).hexdigest())


def _read_rows(path: Path, columns: tuple[str, ...], task: str) -> list[dict]:
    table = _read_table(path, columns)
    rows = table.filter(pc.equal(table["dataset"], task)).to_pylist()
    if not rows:
        raise ValueError(f"task {task!r} is not in {path}; tasks there: {', '.join(_names(table)) or 'none'}")
    return rows


def _read_table(path: Path, columns: tuple[str, ...]):
    if not path.is_file():
        splits = ", ".join(sorted(other.stem for other in path.parent.glob("*.parquet"))) or "none"
        raise ValueError(f"{path} does not exist; splits in {path.parent}: {splits}")
    present = pq.read_schema(path).names
    missing = [column for column in columns if column not in present]
    if missing:
        raise ValueError(f"{path} lacks the column {missing[0]!r}; it has {present}; add what is missing")
    return pq.read_table(path, columns=list(columns))


def _names(table) -> list[str]:
    return sorted(filter(None, table["dataset"].unique().to_pylist()))


def _by_id(rows: list[dict], id_column: str, text_column: str) -> dict[str, str]:
    """{id: text}; a null text becomes the empty text, and a warning counts them."""
    identifier, times = Counter(row[id_column] for row in rows).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{id_column} {identifier!r} occurs {times} times; ids must be unique within a task")
    nulls = sum(row[text_column] is None for row in rows)
    if nulls:
        logger.warning("%d of %d rows have a null %s; read as the empty text", nulls, len(rows), text_column)
    return {row[id_column]: row[text_column] or "" for row in rows}
