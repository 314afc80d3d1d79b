"""A retrieval task from tables in the schema of LoCoV1 (hazyresearch/LoCoV1-Queries and -Documents)."""

import hashlib
import itertools
import json
import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m2bert.files import visible

logger = logging.getLogger(__name__)

QUERY_COLUMNS = ("qid", "query", "answer_pids", "dataset")
DOCUMENT_COLUMNS = ("pid", "passage", "dataset")
ANSWER_COLUMNS = ("position", "answer")  # optional: where in the document the answer begins


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, the documents to search, and which documents answer which query.

    Attributes:
        queries: {qid: text}.
        documents: {pid: passage}; a passage may be the empty text, but one that is null is left out.
        qrels: {qid: {pid: grade}} over all queries, at least one answer each; LoCoV1 has grade 1 only.
        fingerprint: sha256 of the content.
        source: folder, file or Hub id that it was read from.
        revision: commit of the data, where it comes from the Hub.
        positions: {qid: where the answer begins in its document, as a share (0 to 1) of the characters}; None if
            the data do not say.
    """

    name: str
    split: str
    queries: dict[str, str]
    documents: dict[str, str]
    qrels: dict[str, dict[str, int]]
    fingerprint: str
    source: str = ""
    revision: str | None = None
    positions: dict[str, float] | None = None

    @property
    def base_name(self) -> str:
        """The name without what a variant of the documents, a subset or added distractors append to it."""
        return re.sub(r"( \([^()]*\))?( \+\d+)?$", "", self.name)


def load_task(data_dir: str | Path, task: str, split: str, documents: str = "documents") -> RetrievalTask:
    """Read the rows with `dataset == task` of queries/SPLIT.parquet and documents/SPLIT.parquet.

    Where the answers begin is read too, if the queries say it: as a share of the document's characters in a column
    `position`, or as the answer's text in a column `answer`, found in the passage.

    Args:
        documents: folder of the documents, for a task that has them in several variants.

    Raises:
        ValueError: a file or column is missing, the task is unknown, an id or a text is no text, an id occurs twice, a
            query has no answer, an answer names a document that is not there, or a position is no share.
    """
    data_dir = Path(data_dir)
    query_rows = _read_rows(data_dir / "queries" / f"{split}.parquet", QUERY_COLUMNS, task, ANSWER_COLUMNS)
    document_rows = _read_rows(data_dir / documents / f"{split}.parquet", DOCUMENT_COLUMNS, task)
    name = task if documents == "documents" else f"{task} ({documents})"
    return make_task(name, split, query_rows, document_rows, source=str(data_dir))


def task_names(data_dir: str | Path, split: str) -> list[str]:
    """Return the sorted names of the tasks in documents/SPLIT.parquet.

    Raises:
        ValueError: the file or its column is missing.
    """
    path = Path(data_dir) / "documents" / f"{split}.parquet"
    names = _names(read_table(path, ("dataset",)))
    if not names:
        raise ValueError(f"{path} names no task in the column 'dataset'; write one in every row")
    return names


def make_task(
    task: str,
    split: str,
    query_rows: list[dict],
    document_rows: list[dict],
    source: str = "",
    revision: str | None = None,
) -> RetrievalTask:
    """Return a task from its rows, wherever they come from; see `load_task` for columns and errors.

    Documents without text are kept, and a warning counts them.
    """
    if document_rows and all(row["passage"] is None for row in document_rows):
        raise ValueError(
            f"task {task!r}: every passage in the split {split!r} is null; write the texts into that column"
        )
    query_rows, document_rows = without_null_passages(query_rows, document_rows, task)
    for what, rows in (("queries", query_rows), ("documents", document_rows)):
        if not rows:
            raise ValueError(f"task {task!r} has no {what} in the split {split!r}; add some, or leave the task out")
    documents = _by_id(document_rows, "pid", "passage")
    queries = _by_id(query_rows, "qid", "query")
    for what, texts in (("documents", documents), ("queries", queries)):
        empty = sum(not text.strip() for text in texts.values())
        if empty:
            logger.warning("task %s: %d of %d %s are empty", task, empty, len(texts), what)
    qrels = {row["qid"]: dict.fromkeys(_answers(row), 1) for row in query_rows}
    for qid, answers in qrels.items():
        if not answers:
            raise ValueError(f"query {qid!r} of task {task!r} has no answer_pids; remove it or name some")
        unknown = [pid for pid in answers if pid not in documents]
        if unknown:
            raise ValueError(f"answer_pids of query {qid!r} name {unknown[0]!r}, which no document has as pid")
    return RetrievalTask(
        task,
        split,
        queries,
        documents,
        qrels,
        fingerprint_of(queries, documents, qrels),
        source,
        revision,
        _answer_positions(query_rows, documents),
    )


def without_null_passages(queries: list[dict], documents: list[dict], name: str) -> tuple[list[dict], list[dict]]:
    """Drop documents whose passage is null, and queries that only such documents answer.

    So did the research code, whose QASPER has papers without a full text. A warning counts what is left out.
    """
    null = {row["pid"] for row in documents if row["passage"] is None}
    if not null:
        return queries, documents
    kept = []
    for row in queries:
        answers = [pid for pid in _answers(row) if pid not in null]
        if answers or not row["answer_pids"]:
            kept.append({**row, "answer_pids": answers})
    message = "task %s: %d documents have a null passage; left out with %d queries that they alone answer"
    logger.warning(message, name, len(null), len(queries) - len(kept))
    return kept, [row for row in documents if row["pid"] not in null]


def fingerprint_of(queries: dict[str, str], documents: dict[str, str], qrels: dict[str, dict[str, int]]) -> str:
    """Return the sha256 of a task's content, whatever the order of its rows."""
    return hashlib.sha256(json.dumps([queries, documents, qrels], sort_keys=True).encode()).hexdigest()


def _answer_positions(query_rows: list[dict], documents: dict[str, str]) -> dict[str, float] | None:
    positions = {}
    for row in query_rows:
        passage = documents[row["answer_pids"][0]]
        position, answer = row.get("position"), row.get("answer")
        if position is not None and position == position:  # not NaN, which some tools write for a missing number
            if not isinstance(position, int | float) or not 0 <= position <= 1:
                raise ValueError(
                    f"position={position!r} of query {row['qid']!r} must be from 0 to 1, the share of the document's "
                    "characters before the answer"
                )
            positions[row["qid"]] = float(position)
        elif answer and isinstance(answer, str) and answer in passage:
            positions[row["qid"]] = passage.index(answer) / len(passage)
    return positions or None


def _answers(row: dict) -> list[str]:
    answers = row["answer_pids"] or []
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"answer_pids of query {row['qid']!r} is {answers!r}; it must be a list of pids")
    return answers


def _read_rows(path: Path, columns: tuple[str, ...], task: str, optional: tuple[str, ...] = ()) -> list[dict]:
    table = read_table(path, columns, optional)
    rows = rows_of(table, task)
    if not rows:
        raise ValueError(f"task {task!r} is not in {path}; tasks there: {', '.join(_names(table)) or 'none'}")
    return rows


def rows_of(table: pa.Table, task: str) -> list[dict]:
    """Return the rows with `dataset == task`. Arrow computes nothing on some types of text (string_view)."""
    rows, start = [], 0
    for name, run in itertools.groupby(table["dataset"].to_pylist()):
        length = sum(1 for _ in run)
        rows += table.slice(start, length).to_pylist() if name == task else []
        start += length
    return rows


def read_table(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> pa.Table:
    """Return columns of a parquet file, those of `optional` where it has them.

    Raises:
        ValueError: the file is missing or cannot be read, lacks a column, or a column is of another type.
    """
    if not path.is_file():
        splits = [other.stem for other in visible(path.parent, "*.parquet")]
        pieces = [name for name in splits if name.startswith(f"{path.stem}-")]
        fix = f"; make {' and '.join(pieces)} one file, {path.name}" if pieces else ""
        raise ValueError(f"{path} does not exist; splits in {path.parent}: {', '.join(splits) or 'none'}{fix}")
    try:
        present = pq.read_schema(path).names
        missing = [column for column in columns if column not in present]
        if missing:
            raise ValueError(f"{path} lacks the column {missing[0]!r}; it has {present}; add what is missing")
        table = pq.read_table(path, columns=[*columns, *(column for column in optional if column in present)])
        table.validate(full=True)  # texts are UTF-8
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({error}); write it again as parquet") from error
    check_columns(table, columns, str(path))
    return table


def check_columns(table: pa.Table, columns: tuple[str, ...], where: str) -> None:
    """Refuse lists and records where a text is needed, and task names that are no text.

    Args:
        where: what holds the table, for errors.

    Raises:
        ValueError: naming the column.
    """
    for column in columns:
        kind = table.schema.field(column).type
        needed = "texts"
        if column == "answer_pids" and isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
            kind, needed = kind.value_type, "lists of texts"
        if pa.types.is_nested(kind):
            raise ValueError(f"{where}: column {column!r} holds {table.schema.field(column).type}, not {needed}")
    if "dataset" in columns:
        for name in table["dataset"].unique().to_pylist():
            if name is not None and not isinstance(name, str):
                raise ValueError(f"{where} has {name!r} in the column 'dataset'; it must be a text, the task's name")


def _names(table) -> list[str]:
    return sorted(filter(None, table["dataset"].unique().to_pylist()))


def _by_id(rows: list[dict], id_column: str, text_column: str) -> dict[str, str]:
    """Return {id: text}; a null query becomes the empty text, and a warning counts them."""
    for row in rows:
        for column in (id_column, text_column):
            if not isinstance(row[column], str) and (column == id_column or row[column] is not None):
                raise ValueError(f"column {column!r} holds {row[column]!r}, which is no text; convert the column")
    identifier, times = Counter(row[id_column] for row in rows).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{id_column} {identifier!r} occurs {times} times; ids must be unique within a task")
    nulls = sum(row[text_column] is None for row in rows)
    if nulls:
        logger.warning("%d of %d rows have a null %s; read as the empty text", nulls, len(rows), text_column)
    return {row[id_column]: row[text_column] or "" for row in rows}
