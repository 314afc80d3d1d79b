"""A retrieval task, and reading one from tables in the schema of LoCoV1 (hazyresearch/LoCoV1-Queries, -Documents)."""

import hashlib
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m2bert.files import visible
from m2bert.terminal import nearest

logger = logging.getLogger(__name__)

QUERY_COLUMNS = ("qid", "query", "answer_pids", "dataset")
DOCUMENT_COLUMNS = ("pid", "passage", "dataset")
ANSWER_COLUMNS = ("position", "answer")  # optional: where in the document the answer begins
TEXT = pa.large_string()
KINDS_OF_TEXT = (pa.string(), TEXT, pa.string_view(), pa.null())


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, the documents to search, and which documents answer which query."""

    name: str
    split: str
    queries: dict[str, str]  # {qid: text}
    documents: dict[str, str]  # {pid: passage}; a passage may be the empty text
    qrels: dict[str, dict[str, int]]  # {qid: {pid: grade}} of all queries, at least one answer each; LoCoV1 has grade 1
    fingerprint: str  # sha256 of the content
    source: str = ""  # folder, file or Hub id that it was read from
    revision: str | None = None  # commit of the data, if they come from the Hub
    positions: dict[str, float] | None = None  # {qid: where its answer begins, as a fraction of characters}, if known

    @property
    def base_name(self) -> str:
        """The name without what a variant of the documents, a subset or added distractors append to it."""
        return re.sub(r"( \([^()]*\))?( \+\d+)*$", "", self.name)


def load_task(data_dir: str | Path, task: str, split: str, documents: str = "documents") -> RetrievalTask:
    """Read the rows with `dataset == task` of queries/SPLIT.parquet and documents/SPLIT.parquet.

    Two optional columns of the queries say where the answer begins: `position`, a fraction of the document's
    characters, or `answer`, a text to find in the passage.

    Args:
        documents: folder of the documents, for a task that has them in several variants.
    """
    data_dir = Path(data_dir)
    document_path = data_dir / documents / f"{split}.parquet"
    query_table = read_table(data_dir / "queries" / f"{split}.parquet", QUERY_COLUMNS, ANSWER_COLUMNS)
    document_table = read_table(document_path, DOCUMENT_COLUMNS)
    check_names([task], names_in(document_table), str(document_path))
    name = task if documents == "documents" else f"{task} ({documents})"
    return make_task(name, split, rows_of(query_table, task), rows_of(document_table, task), source=str(data_dir))


def task_names(data_dir: str | Path, split: str) -> list[str]:
    """Return the sorted names of the tasks in documents/SPLIT.parquet. Raises ValueError if there are none."""
    path = Path(data_dir) / "documents" / f"{split}.parquet"
    names = names_in(read_table(path, ("dataset",)))
    if not names:
        raise ValueError(f"{path} names no task in the column 'dataset'; write one in every row")
    return names


def check_names(names: list[str] | None, known: Iterable[str], where: str) -> None:
    """Raise ValueError, with the nearest known name, if a task is not known."""
    for name in names or []:
        if name not in known:
            raise ValueError(f"task {name!r} is not in {where}; tasks there: {', '.join(known)}{nearest(name, known)}")


def read_table(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> pa.Table:
    """Return columns of a parquet file, those of `optional` where it has them; see `with_texts`."""
    try:
        present = pq.read_schema(path).names
        table = pq.read_table(path, columns=[column for column in (*columns, *optional) if column in present])
        table.validate(full=True)  # texts are UTF-8
    except (OSError, pa.ArrowException) as error:
        splits = ", ".join(other.stem for other in visible(path.parent, "*.parquet")) or "none"
        raise ValueError(f"{path} cannot be read ({error}); splits there, one file each: {splits}") from error
    return with_texts(table, columns, str(path))


def with_texts(table: pa.Table, columns: tuple[str, ...], where: str) -> pa.Table:
    """Return the table with `columns` as large strings, and `answer_pids` as lists of them.

    Raises ValueError if a column is missing or does not hold text; `where` names the table.
    """
    kinds = dict(zip(table.schema.names, table.schema.types, strict=True))
    for name in columns:
        kind, wanted, needed = kinds.get(name), TEXT, "texts"
        if name == "answer_pids":
            kind, wanted, needed = getattr(kind, "value_type", None), pa.large_list(TEXT), "lists of texts"
        if isinstance(kind, pa.DictionaryType):
            kind = kind.value_type
        if kind not in KINDS_OF_TEXT:
            held = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
            raise ValueError(f"{where} needs a column {name!r} of {needed}; it has {held}")
        table = table.set_column(table.column_names.index(name), name, table[name].cast(wanted))
    return table


def names_in(table: pa.Table) -> list[str]:
    """Return the sorted names of the tasks in a table's column `dataset`."""
    return sorted(filter(None, table["dataset"].unique().to_pylist()))


def rows_of(table: pa.Table, task: str) -> list[dict]:
    """Return the rows with `dataset == task`. Arrow cannot filter tables that have a column of string_view."""
    rows, start = [], 0
    for name, run in itertools.groupby(table["dataset"].to_pylist()):
        length = len(list(run))
        rows += table.slice(start, length).to_pylist() if name == task else []
        start += length
    return rows


def make_task(
    task: str,
    split: str,
    query_rows: list[dict],
    document_rows: list[dict],
    source: str = "",
    revision: str | None = None,
) -> RetrievalTask:
    """Return a task from its rows; see `load_task` for the columns.

    Documents with a null passage are left out, with the queries that they alone answer, as in the research code. Empty
    texts are kept; a null query becomes one. Warnings count both.
    """
    where = f"task {task!r}, split {split!r}" + (f" of {source}" if source else "")
    null = {row["pid"] for row in document_rows if row["passage"] is None}
    passages = ((row["pid"], row["passage"]) for row in document_rows if row["pid"] not in null)
    documents = texts_by_id("documents", passages, where)
    answers = [[pid for pid in row["answer_pids"] or [] if pid not in null] for row in query_rows]
    kept = [(row, left) for row, left in zip(query_rows, answers, strict=True) if left or not row["answer_pids"]]
    if null:
        message = "%s: %d of %d documents have a null passage; left out with %d queries that they alone answer"
        logger.warning(message, where, len(null), len(document_rows), len(query_rows) - len(kept))
    queries = texts_by_id("queries", ((row["qid"], row["query"] or "") for row, _ in kept), where)
    for kind, texts in (("documents", documents), ("queries", queries)):
        empty = sum(not text.strip() for text in texts.values())
        if empty:
            logger.warning("%s: %d of %d %s are empty", where, empty, len(texts), kind)
    qrels, positions = {}, {}
    for row, left in kept:
        unknown = [pid for pid in left if pid not in documents]
        position = row.get("position")
        if isinstance(position, int | float) and position != position:
            position = None  # some tools write NaN for a missing number
        problem = "" if left else "has no answer_pids; name some"
        if unknown:
            problem = f"is answered by {unknown[0]!r}, which is no document{nearest(unknown[0], documents)}"
        elif position is not None and not (isinstance(position, int | float) and 0 <= position <= 1):
            problem = f"has position={position!r}; it must be from 0 to 1, of the characters"
        if problem:
            raise ValueError(f"{where}: query {row['qid']!r} {problem}")
        qrels[row["qid"]] = dict.fromkeys(left, 1)
        passage, answer = documents[left[0]], row.get("answer")
        if position is None and answer and isinstance(answer, str) and answer in passage:
            position = passage.index(answer) / len(passage)
        if position is not None:
            positions[row["qid"]] = float(position)
    fingerprint = fingerprint_of(queries, documents, qrels)
    return RetrievalTask(task, split, queries, documents, qrels, fingerprint, source, revision, positions or None)


def texts_by_id(kind: str, pairs: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Return {id: text} of (id, text) of queries or documents; `where` names their source in errors.

    Raises ValueError if there are none, an id occurs twice, or an id or a text is another type.
    """
    pairs = list(pairs)
    others = [pair for pair in pairs if not all(isinstance(part, str) for part in pair)]
    if pairs and not others and len(texts := dict(pairs)) == len(pairs):
        return texts
    problem = f" has no {kind}; add some (null texts do not count)"
    if others:
        [(identifier, text), *_] = others
        problem = f", {kind}: id {identifier!r} has {text!r:.80}; both must be texts"
    elif pairs:
        [(identifier, times)] = Counter(identifier for identifier, _ in pairs).most_common(1)
        problem = f", {kind}: id {identifier!r} occurs {times} times; ids must be unique within a task"
    raise ValueError(where + problem)


def fingerprint_of(queries: dict[str, str], documents: dict[str, str], qrels: dict[str, dict[str, int]]) -> str:
    """Return the sha256 of a task's content, whatever the order of its rows."""
    return hashlib.sha256(json.dumps([queries, documents, qrels], sort_keys=True).encode()).hexdigest()
