"""Retrieval tasks as a user names them with --data, --task and --distractors, and a folder of one's own queries:

    my-folder/
        queries.csv       columns query and answer: the document that answers it; several are separated by ;
        documents/        .txt and .md files, each called by its path in this folder; or else
        documents.csv     columns id and text

Columns are separated by commas, semicolons or tabs. The text must be UTF-8. Hidden files are not read. Names are
compared in Unicode's composed form (NFC), since systems and archives differ in how they write an accent.
"""

import csv
import io
import logging
import random
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from m2bert.files import read_text, visible
from m2bert.terminal import nearest

from .from_hub import LOCOV0_REVISION, LOCOV0_TASKS, LOCOV1, LOCOV1_TASKS, load_hub_tasks
from .schema import (
    RetrievalTask,
    check_names,
    fingerprint_of,
    load_task,
    make_task,
    read_table,
    task_names,
    with_texts,
)

logger = logging.getLogger(__name__)

DOCUMENTS = "documents"
NAMED = ("locov1", "locov0", "mteb")
DISTRACTOR = "distractor_"
QUERIES = "queries.csv"
TAKES = {"tables": ("split", "documents"), "csv": (), "mteb": ("split",), "hub": ("split", "revision")}  # settings
SUFFIXES = (".txt", ".md")
TEXT_COLUMNS = ("text", "passage")  # of a parquet file with texts alone


def load_tasks(
    data: str, names: list[str] | None, split: str, revision: str | None = None, documents: str = DOCUMENTS
) -> list[RetrievalTask]:
    """Load the named tasks of a source, or all of them.

    Args:
        data: a folder with queries/SPLIT.parquet and documents/SPLIT.parquet; a folder with queries.csv; "locov1" or
            "locov0"; PATH of a pair PATH-Queries and PATH-Documents on the Hub, as in org/name; or "mteb".
        names: of tasks there; for mteb also of benchmarks and of the paper's tables. None takes all, except for mteb.
        revision: of data on the Hub, see `from_hub.load_hub_tasks`.
        documents: folder of the documents, for a local task that has them in several variants.
    """
    folder = Path(data).expanduser()
    is_tables, is_csv = (folder / "queries").is_dir(), (folder / QUERIES).is_file()
    is_hub_id = data.count("/") == 1 and not data.startswith((".", "/", "~"))
    if not (is_tables or is_csv) and (folder.is_dir() or not (is_hub_id or data in NAMED)):
        known = f"{', '.join(NAMED)} or a Hub id, as org/name{nearest(data.lower(), NAMED)}"
        raise ValueError(f"data={data!r} is no folder with queries/{split}.parquet or {QUERIES}; name one, or {known}")
    given = {"split": None if split == "test" else split, "revision": revision}
    given |= {"documents": None if documents == DOCUMENTS else documents}
    kind = "tables" if is_tables else "csv" if is_csv else "mteb" if data == "mteb" else "hub"
    unused = [f"{name}={value!r}" for name, value in given.items() if value is not None and name not in TAKES[kind]]
    problems = [f"{setting} does not apply to data={data!r}; leave it out" for setting in unused]
    if kind == "mteb" and not names:
        problems.append("data='mteb' has hundreds of tasks; name some, as in --task LongEmbed")
    if problems:
        raise ValueError(problems[0])
    if is_tables:
        return [load_task(folder, name, split, documents) for name in names or task_names(folder, split)]
    if is_csv:
        task = load_csv_folder(folder)
        check_names(names, [task.name], data)
        return [task]
    if data == "mteb":
        from ..from_mteb import from_mteb  # slow to import

        return from_mteb(names, split)
    if is_hub_id:
        return load_hub_tasks(data, names, split, revision)
    known, default = (LOCOV1_TASKS, None) if data == "locov1" else (LOCOV0_TASKS, LOCOV0_REVISION)
    check_names(names, known, data)
    return load_hub_tasks(LOCOV1, names or list(known), split, revision or default)


def load_csv_folder(folder: Path) -> RetrievalTask:
    """Return the task of a folder with queries.csv, called by the folder's name; its split is "test"."""
    documents = folder / "documents"
    if documents.is_dir():
        texts = read_folder(documents)
    else:
        documents = folder / "documents.csv"
        texts = [(_name(row["id"]), row["text"]) for row in read_rows(documents, ("id", "text"), filled=("id",))]
    query_rows = []
    for row in read_rows(folder / QUERIES, ("query", "answer"), filled=("query", "answer")):
        answers = [_name(answer).replace("\\", "/") for answer in row["answer"].split(";") if answer.strip()]
        query_rows.append({"qid": f"q{len(query_rows) + 1}", "query": row["query"].strip(), "answer_pids": answers})
    repeated = len(query_rows) - len({row["query"] for row in query_rows})
    if repeated:
        logger.warning("%s: %d queries repeat another; put all answers of a query into one row", folder, repeated)
    document_rows = [{"pid": pid, "passage": text} for pid, text in texts]
    return make_task(folder.resolve().name, "test", query_rows, document_rows, source=str(folder))


def read_folder(folder: Path) -> list[tuple[str, str]]:
    """Return (path in the folder, text) of its .txt and .md files; a warning counts the files of other types."""
    texts, others = [], Counter()
    for path in visible(folder, "**/*"):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            texts.append((_name(path.relative_to(folder).as_posix()), read_text(path)))
        elif path.is_file():
            others[path.suffix.lower() or "no suffix"] += 1
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        logger.warning("%s: left out for their type: %s; documents are %s", folder, kinds, " and ".join(SUFFIXES))
    return texts


def _name(text: str) -> str:
    """Return a document's name in the form in which names are compared."""
    return unicodedata.normalize("NFC", text.strip())


def read_rows(path: Path, columns: tuple[str, ...], filled: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Yield {column: cell} of every row of a CSV that is not blank.

    Not pandas.read_csv, which takes the first column for an index if every row has one cell more than the header.

    Args:
        columns: needed, each once; those of `filled` may not be empty.
    """
    text = read_text(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    csv.field_size_limit(2**31 - 1)  # 131,072 characters by default
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="", strict=True)
    line = 0
    try:
        header = reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
        if any(header.count(column) != 1 for column in columns):
            raise ValueError(f"{path} needs the columns {', '.join(columns)}, each once; its first line has {header}")
        line = reader.line_num
        for row in reader:
            line = reader.line_num
            too_many = "".join(row.pop(None, [])).strip()
            if not too_many and not "".join(row.values()).strip():
                continue
            empty = [column for column in filled if not row[column].strip()]
            if too_many or empty:
                problem = f"column {empty[0]!r} is empty; fill it or delete the line" if empty else ""
                problem = (
                    f"more cells than the header; put quotes around texts with {delimiter!r}" if too_many else problem
                )
                raise ValueError(f"{path}, line {line}: {problem}")
            yield row
    except csv.Error as error:
        raise ValueError(f'{path}, after line {line}: quotes do not pair ({error}); write " in a cell twice') from error


def add_distractors(task: RetrievalTask, texts_from: str | Path, count: int, seed: int = 0) -> RetrievalTask:
    """Return the task with `count` more documents that answer nothing; its name gains " +count".

    Each is cut at the length of one of the task's own documents, drawn at random, so that none stands out by being
    longer. Shorter texts stay as they are. A text that the task already has is not taken.

    Args:
        texts_from: a parquet file with a column `text` or `passage`, a folder of such files, or the folder of a task.
            Of a folder with splits, `train` is read.
        seed: the same seed draws the same texts and lengths.

    Raises ValueError if the texts cannot be read, or if there are fewer than `count`.
    """
    generator = random.Random(f"{seed} {task.fingerprint}")
    lengths_chars = sorted(len(text) for text in task.documents.values() if text)
    taken = set(task.documents.values())
    first = sum(pid.startswith(DISTRACTOR) for pid in task.documents)
    added: dict[str, str] = {}
    cut = 0
    for whole in read_source(Path(texts_from).expanduser(), sys.maxsize, "train", seed):  # all, shuffled
        if len(added) == count:
            break
        text = whole[: generator.choice(lengths_chars)]
        if whole not in taken and text not in taken:
            taken |= {whole, text}
            added[f"{DISTRACTOR}{first + len(added):06d}"] = text
            cut += len(text) < len(whole)
    if len(added) < count:
        raise ValueError(f"{texts_from} has {len(added)} texts that {task.name!r} lacks, not {count}; ask for fewer")
    logger.info("task %s: %d of %d distractors are cut to the length of a document", task.name, cut, count)
    documents = task.documents | added
    fingerprint = fingerprint_of(task.queries, documents, task.qrels)
    return replace(task, name=f"{task.name} +{count}", documents=documents, fingerprint=fingerprint)


def read_source(path: Path, count: int, split: str, seed: int = 0) -> list[str]:
    """Draw at most `count` texts at random; empty ones are left out.

    Args:
        path: a parquet file with a column `text` or `passage`; a folder of such files; one of folders that each have
            SPLIT.parquet; or a task's folder, of which documents/SPLIT.parquet is read.
        split: of a folder that has splits.
    """
    whole = (path, path / "documents" / f"{split}.parquet", path / f"{split}.parquet")
    files = [file for file in whole if file.is_file()][:1]
    files = files or visible(path, f"*/{split}.parquet") or visible(path, "*.parquet")
    rows: list[str | None] = []
    for file in files:
        table = read_table(file, (), optional=TEXT_COLUMNS)
        name = next((name for name in TEXT_COLUMNS if name in table.column_names), TEXT_COLUMNS[0])
        rows += with_texts(table, (name,), str(file))[name].to_pylist()
    texts = [text for text in rows if text and text.strip()]
    if not texts:
        raise ValueError(f"source {path} holds no text; give a parquet file with a column `text`, or a folder of them")
    if len(texts) < len(rows):
        logger.warning("%s: %d of %d texts are empty and are left out", path, len(rows) - len(texts), len(rows))
    return random.Random(seed).sample(texts, min(count, len(texts)))
