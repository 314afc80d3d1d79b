"""A retrieval task from a CSV file of one's own queries and a folder of text files, or a second CSV.

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
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from m2bert.files import read_text, visible
from m2bert.terminal import nearest

from .schema import RetrievalTask, make_task, texts_by_id

logger = logging.getLogger(__name__)

QUERIES = "queries.csv"
SPLIT = "test"  # a CSV has no other
SUFFIXES = (".txt", ".md")


def load_csv_folder(folder: Path) -> RetrievalTask:
    """Return the task of a folder with queries.csv and documents/ or documents.csv, called by the folder's name.

    Raises:
        ValueError: as `load_csv_task`.
    """
    documents = folder / "documents"
    documents = documents if documents.is_dir() else folder / "documents.csv"
    return load_csv_task(folder / QUERIES, documents, folder.resolve().name)


def load_csv_task(queries_csv: str | Path, documents: str | Path, name: str) -> RetrievalTask:
    """Read the queries and what they search.

    Args:
        queries_csv: file with the columns query and answer.
        documents: folder of text files, or a CSV with the columns id and text.
        name: of the task.

    Raises:
        ValueError: a file is missing or not UTF-8, a row does not fit, an answer is not a document, or as `make_task`.
    """
    queries_csv, documents = Path(queries_csv), Path(documents)
    if documents.is_dir():
        texts = read_folder(documents)
    else:
        texts = [(_name(row["id"]), row["text"]) for _, row in read_rows(documents, ("id", "text"), filled=("id",))]
    known = texts_by_id("documents", texts, str(documents))
    query_rows = []
    for where, row in read_rows(queries_csv, ("query", "answer"), filled=("query", "answer")):
        answers = [_name(answer).replace("\\", "/") for answer in row["answer"].split(";") if answer.strip()]
        for answer in answers:
            if answer not in known:
                hint = nearest(answer, known) or f"; the first is {next(iter(known))!r}"
                raise ValueError(f"{where}: answer {answer!r} is no document of {documents}{hint}")
        query_rows.append({"qid": f"q{len(query_rows) + 1}", "query": row["query"].strip(), "answer_pids": answers})
    document_rows = [{"pid": pid, "passage": text} for pid, text in known.items()]
    return make_task(name, SPLIT, query_rows, document_rows, source=str(queries_csv.parent))


def read_folder(folder: Path) -> list[tuple[str, str]]:
    """Return (path in the folder, text) of its .txt and .md files; a warning counts the files of other types.

    Raises:
        ValueError: a text is not UTF-8.
    """
    files = [path for path in visible(folder, "**/*") if path.is_file()]
    others = Counter(path.suffix.lower() or "no suffix" for path in files if path.suffix.lower() not in SUFFIXES)
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        logger.warning("%s: left out for their type: %s; documents are %s", folder, kinds, " and ".join(SUFFIXES))
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    return [(_name(path.relative_to(folder).as_posix()), read_text(path)) for path in paths]


def _name(text: str) -> str:
    """Return a document's name in the form in which names are compared."""
    return unicodedata.normalize("NFC", text.strip())


def read_rows(path: Path, columns: tuple[str, ...], filled: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where it is (file and line) and {column: cell} of every row that is not blank.

    Not pandas.read_csv, which takes the first column for an index if every row has one cell more than the header.

    Args:
        columns: needed, each once.
        filled: those of them that may not be empty.

    Raises:
        ValueError: a column is missing, a row has more cells than the header or lacks one, or quotes do not pair.
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
            where = f"{path}, line {line}"
            if "".join(row.pop(None, [])).strip():
                raise ValueError(f"{where} has more cells than the header; put quotes around texts with {delimiter!r}")
            if not "".join(row.values()).strip():
                continue
            empty = [column for column in filled if not row[column].strip()]
            if empty:
                raise ValueError(f"{where}: column {empty[0]!r} is empty; fill it or delete the line")
            yield where, row
    except csv.Error as error:
        raise ValueError(
            f'{path}, after line {line}: quotes do not pair ({error}); write " within a cell twice'
        ) from error
