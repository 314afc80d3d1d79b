"""A retrieval task from a CSV file of one's own queries and a folder of text files, or a second CSV.

    my-folder/
        queries.csv       columns query and answer: the document that answers it; several are separated by ;
        documents/        .txt and .md files, each called by its path in this folder; or else
        documents.csv     columns id and text

Spreadsheets write commas, semicolons or tabs between columns and may begin the file with a byte-order mark: all are
read. The text must be UTF-8. Hidden files are no documents. Names are compared in Unicode's composed form (NFC), since
systems and archives differ in how they write an accent.
"""

import csv
import io
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from m2bert.files import read_text, visible
from m2bert.terminal import nearest

from .locov1 import RetrievalTask, make_task

logger = logging.getLogger(__name__)

QUERIES = "queries.csv"
SPLIT = "test"  # a CSV has no other
SUFFIXES = (".txt", ".md")
MAX_CELL_CHARS = 2**31 - 1  # the csv module stops at 131,072 characters unless told otherwise


def load_csv_folder(folder: Path) -> RetrievalTask:
    """Return the task of a folder with queries.csv beside documents/ or documents.csv, called by the folder's name.

    Raises:
        ValueError: the documents are missing; or see `load_csv_task`.
    """
    for documents in (folder / "documents", folder / "documents.csv"):
        if documents.exists():
            return load_csv_task(folder / QUERIES, documents, folder.resolve().name)
    raise ValueError(f"{folder} has {QUERIES} but no documents; add a folder documents/ or a file documents.csv")


def load_csv_task(queries_csv: str | Path, documents: str | Path, name: str) -> RetrievalTask:
    """Read the queries and what they search.

    Args:
        queries_csv: file with the columns query and answer.
        documents: folder of text files, or a CSV with the columns id and text.
        name: of the task.

    Raises:
        ValueError: a file is missing or not UTF-8, a column is missing, a cell is empty, an id occurs twice, two
            names differ only in how they write an accent, or an answer is no document. Errors name file and line.
    """
    queries_csv, documents = Path(queries_csv), Path(documents)
    texts = read_folder(documents) if documents.is_dir() else read_documents_csv(documents)
    query_rows = []
    for line, row in read_rows(queries_csv, ("query", "answer")):
        where = f"{queries_csv}, line {line}"
        answers = [_name(answer).replace("\\", "/") for answer in row["answer"].split(";") if answer.strip()]
        if not answers:
            raise ValueError(f"{where}: column 'answer' is empty; name the document that answers the query")
        for answer in answers:
            if answer not in texts:
                hint = nearest(answer, texts) or f"; the first is {next(iter(texts))!r}"
                raise ValueError(f"{where}: answer {answer!r} is no document of {documents}{hint}")
        if not row["query"].strip():
            raise ValueError(f"{where}: column 'query' is empty; write the query or delete the line")
        query_rows.append({"qid": f"q{len(query_rows) + 1}", "query": row["query"].strip(), "answer_pids": answers})
    if not query_rows:
        raise ValueError(f"{queries_csv} has no queries below its header; add a line for each")
    document_rows = [{"pid": pid, "passage": text} for pid, text in texts.items()]
    return make_task(name, SPLIT, query_rows, document_rows, source=str(queries_csv.parent))


def read_folder(folder: Path) -> dict[str, str]:
    """Return {path in the folder: text} of its .txt and .md files, those of subfolders too.

    A line in the log counts the files of other types.

    Raises:
        ValueError: there are none, one is not UTF-8, or the names of two are one in NFC.
    """
    files = [path for path in visible(folder, "**/*") if path.is_file()]
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(f"{folder} has no {' or '.join(SUFFIXES)} files; put each document into one")
    others = Counter(path.suffix.lower() or "no suffix" for path in files if path.suffix.lower() not in SUFFIXES)
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        logger.warning("%s: left out for their type: %s; documents are %s", folder, kinds, " and ".join(SUFFIXES))
    names: dict[str, Path] = {}
    for path in paths:
        name = _name(path.relative_to(folder).as_posix())
        if name in names:
            raise ValueError(f"{folder}: {str(names[name])!a} and {str(path)!a} are one name; rename one of them")
        names[name] = path
    return {name: read_text(path) for name, path in names.items()}


def read_documents_csv(path: Path) -> dict[str, str]:
    """Return {id: text}."""
    texts: dict[str, str] = {}
    written: dict[str, str] = {}
    for line, row in read_rows(path, ("id", "text")):
        pid = _name(row["id"])
        if not pid:
            raise ValueError(f"{path}, line {line}: column 'id' is empty; give every document one")
        if pid in texts:
            both = "" if written[pid] == row["id"] else f", as {written[pid]!a} and {row['id']!a}"
            raise ValueError(f"{path}, line {line}: id {pid!r} occurs twice{both}; ids must be unique")
        texts[pid] = row["text"]
        written[pid] = row["id"]
    if not texts:
        raise ValueError(f"{path} has no documents below its header; add a line for each")
    return texts


def _name(text: str) -> str:
    """Return a document's name in the form in which names are compared."""
    return unicodedata.normalize("NFC", text.strip())


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line on which it begins, {column: cell}) of every row that is not blank.

    Raises:
        ValueError: a column is missing, a row has more cells than the header, or quotes do not pair.
    """
    text = read_text(path)
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    csv.field_size_limit(MAX_CELL_CHARS)
    rows = _numbered(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), path)
    names = [name.strip().lower() for name in next(rows, (1, []))[1]]
    missing = [column for column in columns if column not in names]
    if missing:
        raise ValueError(f"{path} lacks the column {missing[0]!r}; its first line has {names}, it needs {columns}")
    for line, cells in rows:
        if any(cell.strip() for cell in cells[len(names) :]):
            raise ValueError(
                f"{path}, line {line} has {len(cells)} cells for {len(names)} columns; put quotes around texts that "
                f"hold {delimiter!r}"
            )
        if any(cell.strip() for cell in cells):
            padded = cells + [""] * (len(names) - len(cells))
            yield line, {column: padded[names.index(column)] for column in columns}


def _numbered(reader, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line on which it begins, cells) of every row of a csv reader."""
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, the row that begins on line {line} has quotes that do not pair ({error}); put a cell in two, and "
            "write those within it twice"
        ) from error
