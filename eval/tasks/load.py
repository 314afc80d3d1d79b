"""Retrieval tasks as a user names them with --data, --task and --distractors, and a folder of one's own queries:

    my-folder/
        queries.csv       columns query and answer: the document that answers it; several are separated by ;
        documents/        texts, mails and subtitles, each called by its path in this folder; or else
        documents.csv     columns id and text

Columns are separated by commas, semicolons or tabs. The text must be UTF-8. Hidden files are not read. Names are
compared in Unicode's composed form (NFC), since systems and archives differ in how they write an accent. A name that
holds a ; is the whole cell, or stands in quotes within it. Rows of one query are one query.
"""

import csv
import io
import logging
import random
import sys
import unicodedata
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path

from m2bert.files import read_text, shards, visible
from m2bert.terminal import nearest
from m2bert.text_files import read_document, text_files

from .from_beir import load_beir_folder
from .from_hub import LOCOV0_REVISION, LOCOV0_TASKS, LOCOV1, LOCOV1_TASKS, load_hub_tasks
from .from_ir_datasets import PREFIX, load_ir_dataset
from .kinds import DOCUMENTS, QUERIES, TABLES, kind_of
from .schema import (
    RetrievalTask,
    check_names,
    fingerprint_of,
    load_task,
    make_task,
    read_table,
    task_names,
    texts_by_id,
    where_of,
    with_texts,
)

logger = logging.getLogger(__name__)

NAMED = ("locov1", "locov0", "mteb")
DISTRACTOR = "distractor_"
TAKES = {"tables": ("split", "documents"), "beir": ("split",), "csv": (), "mteb": ("split",),
         "hub": ("split", "revision")}  # fmt: skip
TEXT_COLUMNS = ("text", "passage")  # of a parquet file with texts alone


def load_tasks(
    data: str, names: list[str] | None, split: str, revision: str | None = None, documents: str = DOCUMENTS
) -> list[RetrievalTask]:
    """Load the named tasks of a source, or all of them.

    Args:
        data: a folder of one of the kinds in `kinds`; "locov1" or "locov0"; PATH of a pair PATH-Queries and
            PATH-Documents on the Hub, as in org/name; "ir_datasets:ID"; or "mteb".
        names: of tasks there; for mteb also of benchmarks and of the paper's tables. None takes all, except for mteb.
        revision: of data on the Hub, see `from_hub.load_hub_tasks`.
        documents: folder of the documents, for a local task that has them in several variants.
    """
    if data.startswith(PREFIX):
        if split != "test" or revision or documents != DOCUMENTS:
            raise ValueError(f"data={data!r} names its split itself; leave split, revision and documents out")
        task = load_ir_dataset(data.removeprefix(PREFIX))
        check_names(names, [task.name], data)
        return [task]
    folder = Path(data).expanduser()
    kind, is_hub_id = kind_of(folder), data.count("/") == 1 and not data.startswith((".", "/", "~"))
    if kind is None and (folder.is_dir() or not (is_hub_id or data in NAMED)):
        known = f"{', '.join(NAMED)} or a Hub id, as org/name{nearest(data.lower(), NAMED)}"
        raise ValueError(
            f"data={data!r} is no folder with queries/{split}.parquet, {QUERIES} or corpus.jsonl; name one, or {known}"
        )
    given = {"split": None if split == "test" else split, "revision": revision}
    given |= {"documents": None if documents == DOCUMENTS else documents}
    local, kind = kind is not None, kind or ("mteb" if data == "mteb" else "hub")
    unused = [f"{name}={value!r}" for name, value in given.items() if value is not None and name not in TAKES[kind]]
    problems = [f"{setting} does not apply to data={data!r}; leave it out" for setting in unused]
    if kind == "csv" and given["split"]:
        problems = [f"split={split!r} is not in data={data!r}, which has no splits: all of it is 'test'; name that"]
    if kind == "mteb" and not names:
        problems.append("data='mteb' has hundreds of tasks; name some, as in --task LongEmbed")
    if problems:
        raise ValueError(problems[0])
    if local:
        return load_folder(folder, names, split, documents)
    if data == "mteb":
        from ..from_mteb import from_mteb  # slow to import

        return from_mteb(names, split)
    if is_hub_id:
        return load_hub_tasks(data, names, split, revision)
    known, default = (LOCOV1_TASKS, None) if data == "locov1" else (LOCOV0_TASKS, LOCOV0_REVISION)
    check_names(names, known, data)
    return load_hub_tasks(LOCOV1, names or list(known), split, revision or default)


def load_folder(folder: Path, names: list[str] | None, split: str, documents: str = DOCUMENTS) -> list[RetrievalTask]:
    """Load the named tasks of a local folder, or all. A folder with queries.csv has no splits: all of it is any."""
    kind = kind_of(folder)
    if kind == "tables":
        return [load_task(folder, name, split, documents) for name in names or task_names(folder, split)]
    check_names(names, [folder.resolve().name], str(folder))
    return [load_csv_folder(folder, split) if kind == "csv" else load_beir_folder(folder, split)]


def load_csv_folder(folder: Path, split: str = "test") -> RetrievalTask:
    """Return the task of a folder with queries.csv, called by the folder's name."""
    documents = folder / DOCUMENTS
    if documents.is_dir():
        texts = [
            (document_name(path.relative_to(documents).as_posix()), read_document(path))
            for path in text_files(documents)
        ]
    else:
        rows = read_rows(folder / "documents.csv", ("id", "text"), filled=("id",))
        texts = [(document_name(row["id"]), row["text"]) for _, row in rows]
    names = texts_by_id("documents", texts, where_of(folder.resolve().name, split, str(folder)))
    path, answers, unknown, count = folder / QUERIES, {}, [], 0
    for line, row in read_rows(path, ("query", "answer"), filled=("query", "answer")):
        found = answers_in(row["answer"], names)
        unknown += [(line, name) for name in found if name not in names]
        answers.setdefault(row["query"].strip(), []).extend(found)
        count += 1
    if unknown:
        (line, name), more = unknown[0], f" (and {len(unknown) - 1} more)" if unknown[1:] else ""
        raise ValueError(
            f"{path}, line {line}: answer {name!r}{more} is no document{nearest(name, names)}; write ; between answers"
        )
    if count > len(answers):
        repeat = "%s: %d rows repeat a query; each query is asked once, with the answers of all of its rows"
        logger.warning(repeat, path, count - len(answers))
    query_rows = [{"qid": f"q{number}", "query": query, "answer_pids": found}
                  for number, (query, found) in enumerate(answers.items(), 1)]  # fmt: skip
    document_rows = [{"pid": pid, "passage": text} for pid, text in texts]
    return make_task(folder.resolve().name, split, query_rows, document_rows, source=str(folder))


def answers_in(cell: str, names: Container[str]) -> list[str]:
    """Return the names in a cell of the column `answer`: the cell itself if it is a name, else its parts between ;."""
    if document_name(cell) in names:
        return [document_name(cell)]
    rows = csv.reader(io.StringIO(cell, newline=""), delimiter=";", skipinitialspace=True)
    parts = [document_name(part) for row in rows for part in row if part.strip()]
    return [part if part in names else part.replace("\\", "/") for part in parts]


def document_name(text: str) -> str:
    """Return a document's name in the form in which names are compared."""
    return unicodedata.normalize("NFC", text.strip())


def read_rows(path: Path, columns: tuple[str, ...], filled: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the last line and {column: cell} of every row of a CSV that is not blank.

    Not pandas.read_csv, which takes the first column for an index if every row has one cell more than the header.

    Args:
        columns: needed; those of `filled` may not be empty. No column may stand twice.
    """
    text = read_text(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    csv.field_size_limit(2**31 - 1)  # 131,072 characters by default
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="", strict=True)
    line = 0
    try:
        header = reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
        if not set(columns) <= set(header):
            raise ValueError(f"{path} needs the columns {', '.join(columns)}; its first line has {header}")
        if twice := next((name for name in header if name and header.count(name) > 1), None):
            raise ValueError(f"{path}, line 1: column {twice!r} stands twice; rename one")
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
            yield line, row
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
    files = [path] if path.is_file() else shards(path / DOCUMENTS, split, TABLES) or shards(path, split, TABLES)
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
