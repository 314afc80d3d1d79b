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

from m2bert.files import read_json_lines, shards, visible
from m2bert.terminal import nearest, one_line

from .kinds import DOCUMENTS, TABLES

logger = logging.getLogger(__name__)

QUERY_COLUMNS = ("qid", "query", "answer_pids", "dataset")
DOCUMENT_COLUMNS = ("pid", "passage", "dataset")
ANSWER_COLUMNS = ("position", "answer")  # optional: where in the document the answer begins
TEXT = pa.large_string()
KINDS_OF_TEXT = (pa.string(), TEXT, pa.string_view(), pa.null())
HIGHEST_GRADE = 1_000_000  # that trec_eval keeps apart from others

Qrels = dict[str, dict[str, int]]  # {qid: {pid: grade}}; a document is relevant from grade 1 on


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, the documents to search, and which documents answer which query."""

    name: str
    split: str
    queries: dict[str, str]  # {qid: text}
    documents: dict[str, str]  # {pid: passage}; a passage may be the empty text
    qrels: Qrels  # of all queries, as they were judged: grades below 1 too, and documents that are not searched
    fingerprint: str  # sha256 of the content
    source: str = ""  # folder, file or Hub id that it was read from
    revision: str | None = None  # commit of the data, if they come from the Hub
    positions: dict[str, float] | None = None  # {qid: where its answer begins, as a fraction of characters}, if known

    @property
    def base_name(self) -> str:
        """The name without what a variant of the documents, a subset or added distractors append to it."""
        return re.sub(r"( \([^()]*\))?( \+\d+)*$", "", self.name)

    def answers(self, qid: str) -> list[str]:
        """Return the relevant documents of a query that are here to be found, in the order of the judgments."""
        return [pid for pid, grade in self.qrels[qid].items() if grade > 0 and pid in self.documents]


def load_task(data_dir: str | Path, task: str, split: str, documents: str = DOCUMENTS) -> RetrievalTask:
    """Read the rows with `dataset == task` of the tables queries/SPLIT and documents/SPLIT: parquet, in one file or in
    the parts of the Hub, or JSON lines.

    Two optional columns of the queries say where the answer begins: `position`, a fraction of the document's
    characters, or `answer`, a text to find in the passage.

    Args:
        documents: folder of the documents, for a task that has them in several variants.
    """
    data_dir = Path(data_dir)
    query_table = read_split(data_dir / "queries", split, QUERY_COLUMNS, ANSWER_COLUMNS)
    document_table = read_split(data_dir / documents, split, DOCUMENT_COLUMNS)
    check_names([task], names_in(document_table), f"{data_dir / documents}, split {split!r}")
    name = task if documents == DOCUMENTS else f"{task} ({documents})"
    return make_task(name, split, rows_of(query_table, task), rows_of(document_table, task), source=str(data_dir))


def task_names(data_dir: str | Path, split: str) -> list[str]:
    """Return the sorted names of the tasks in documents/SPLIT. Raises ValueError if there are none."""
    folder = Path(data_dir) / DOCUMENTS
    table = read_split(folder, split, ("dataset",))
    names = names_in(table)
    if not names or table["dataset"].null_count:  # rows without a task would be left out without a word
        raise ValueError(
            f"{folder}, split {split!r}: a row has null in the column 'dataset'; write its task in every row"
        )
    return names


def check_names(names: list[str] | None, known: Iterable[str], where: str) -> None:
    """Raise ValueError, with the nearest known name, if a task is not known."""
    for name in names or []:
        if name not in known:
            raise ValueError(f"task {name!r} is not in {where}; tasks there: {', '.join(known)}{nearest(name, known)}")


def read_split(folder: Path, split: str, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> pa.Table:
    """Return columns of a split's table, all its parts; see `read_table`."""
    files = shards(folder, split, TABLES)
    if not files:
        splits = ", ".join(path.name for path in visible(folder, "*") if path.name.endswith(TABLES)) or "none"
        raise ValueError(f"{folder} has no {split}.parquet and no {split}.jsonl; tables there: {splits}")
    tables = [read_table(path, columns, optional) for path in files]
    return pa.concat_tables(tables, promote_options="permissive")


def read_table(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> pa.Table:
    """Return columns of a parquet or JSON-lines file, those of `optional` where it has them; see `with_texts`."""
    try:
        if path.suffix == ".parquet":
            present = pq.read_schema(path).names
            table = pq.read_table(path, columns=[column for column in (*columns, *optional) if column in present])
        else:
            table = table_of_lines(path, (*columns, *optional))
        table.validate(full=True)  # texts are UTF-8
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}); write it again") from error
    return with_texts(table, columns, str(path))


def table_of_lines(path: Path, columns: tuple[str, ...]) -> pa.Table:
    """Return those of the columns that some line of a JSON-lines file has; a line that lacks one has null there."""
    rows = []
    for number, row in read_json_lines(path):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is no JSON object: {row!r:.80}")
        rows.append(row)
    present = [column for column in columns if any(column in row for row in rows)]
    return pa.table({column: pa.array([row.get(column) for row in rows]) for column in present})


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
    where = where_of(task, split, source)
    null = {row["pid"] for row in document_rows if row["passage"] is None}
    passages = ((row["pid"], row["passage"]) for row in document_rows if row["pid"] not in null)
    documents = texts_by_id("documents", passages, where)
    answers = [[pid for pid in row["answer_pids"] or [] if pid not in null] for row in query_rows]
    kept = [(row, left) for row, left in zip(query_rows, answers, strict=True) if left or not row["answer_pids"]]
    if null:
        message = "%s: %d of %d documents have a null passage; left out with %d queries that they alone answer"
        logger.warning(message, where, len(null), len(document_rows), len(query_rows) - len(kept))
    queries = texts_by_id("queries", ((row["qid"], row["query"] or "") for row, _ in kept), where)
    qrels, positions = {}, {}
    for row, left in kept:
        position = row.get("position")
        if isinstance(position, int | float) and position != position:
            position = None  # some tools write NaN for a missing number
        problem = "" if left else "has no answer_pids; name some"
        if position is not None and not (isinstance(position, int | float) and 0 <= position <= 1):
            problem = f"has position={position!r}; it must be from 0 to 1, of the characters"
        if problem:
            raise ValueError(f"{where}: query {row['qid']!r} {problem}")
        qrels[row["qid"]] = dict.fromkeys(left, 1)
        first, answer = next((pid for pid in left if pid in documents), None), row.get("answer")
        passage = documents.get(first, "")
        if position is None and answer and isinstance(answer, str) and answer in passage:
            position = passage.index(answer) / len(passage)
        if position is not None and first is not None:
            positions[row["qid"]] = float(position)
    return judged_task(task, split, queries, documents, qrels, source, revision, positions or None)


def judged_task(
    name: str,
    split: str,
    queries: dict[str, str],
    documents: dict[str, str],
    qrels: Qrels,
    source: str = "",
    revision: str | None = None,
    positions: dict[str, float] | None = None,
) -> RetrievalTask:
    """Return a task with the judgments as they are. trec_eval counts a relevant document that is not there to be found
    as one that was missed, so it stays; warnings count such documents, queries that nothing here answers, and empty
    texts.

    Raises ValueError for judgments that trec_eval cannot read, and if no document here answers any query.
    """
    where = where_of(name, split, source)
    check_qrels(qrels, where)
    task = RetrievalTask(name, split, queries, documents, qrels, fingerprint_of(queries, documents, qrels), source,
                         revision, positions)  # fmt: skip
    for kind, texts in (("documents", documents), ("queries", queries)):
        if empty := sum(not text.strip() for text in texts.values()):
            fix = "take them out: an empty text has a vector, too, which may come first"
            logger.warning("%s: %d of %d %s are empty; %s", where, empty, len(texts), kind, fix)
    judged = {pid for its in qrels.values() for pid in its}
    absent = sorted(judged - documents.keys())
    unanswered = sum(not task.answers(qid) for qid in queries)
    if unanswered == len(queries):
        example = f"; {absent[0]!r} is judged, {next(iter(documents))!r} is a document" if absent else ""
        raise ValueError(f"{where}: no document answers any query{example}; judgments must name ids of documents")
    if absent:
        message = "%s: %d of %d judged documents are not there to be found, such as %r; relevant ones count as missed"
        logger.warning(message, where, len(absent), len(judged), absent[0])
    if unanswered:
        logger.warning("%s: %d of %d queries are answered by no document there; each scores 0, as in trec_eval",
                       where, unanswered, len(queries))  # fmt: skip
    return task


def where_of(task: str, split: str, source: str) -> str:
    """Return how warnings and errors name a task."""
    return f"task {task!r}, split {split!r}" + (f" of {source}" if source else "")


def check_qrels(qrels: Qrels, where: str) -> None:
    """Raise ValueError for an id that is no text or holds a null character, and a grade that is no whole number."""
    for qid, judged in qrels.items():
        for pid, grade in judged.items():
            problem = "" if isinstance(pid, str) and "\0" not in pid else "; ids must be texts without null characters"
            if isinstance(grade, bool) or not isinstance(grade, int) or grade > HIGHEST_GRADE:
                problem = f"; grades must be whole numbers up to {HIGHEST_GRADE:,}"
            if problem:
                raise ValueError(f"{where}: query {qid!r} judges document {pid!r} as {grade!r}{problem}")


def texts_by_id(kind: str, pairs: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Return {id: text} of (id, text) of queries or documents; `where` names their source in errors.

    Raises ValueError if there are none, an id occurs twice or holds a null character, at which trec_eval would end it,
    or an id or a text is another type.
    """
    pairs = list(pairs)
    others = [pair for pair in pairs if not all(isinstance(part, str) for part in pair) or "\0" in pair[0]]
    if pairs and not others and len(texts := dict(pairs)) == len(pairs):
        return texts
    problem = f" has no {kind}; add some (null texts do not count)"
    if others:
        [(identifier, text), *_] = others
        problem = f", {kind}: id {identifier!r} has {text!r:.80}; both must be texts, ids without null characters"
    elif pairs:
        [(identifier, times)] = Counter(identifier for identifier, _ in pairs).most_common(1)
        problem = f", {kind}: id {identifier!r} occurs {times} times; ids must be unique within a task"
    raise ValueError(where + problem)


def fingerprint_of(queries: dict[str, str], documents: dict[str, str], qrels: Qrels) -> str:
    """Return the sha256 of a task's content, whatever the order of its rows."""
    return hashlib.sha256(json.dumps([queries, documents, qrels], sort_keys=True).encode()).hexdigest()
