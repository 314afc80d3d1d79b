"""Rows of a query, a text that answers it, and texts that do not, as a retrieval task."""

import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from m2bert.eval.tasks.locov1 import RetrievalTask, make_task
from m2bert.files import read_json_lines

from .parquet import open_columns, read_rows

Negatives = dict[str, list[str]]  # {qid: pids}, best first


def load_triples(source: str, config: str | None, limit: int | None) -> tuple[RetrievalTask, Negatives]:
    """Return a task from rows of (query, positive, negatives), and its given negatives; equal texts become one.

    Args:
        source: parquet or JSON-lines file, or Hub id; columns query, positive, and none or more whose names begin with
            negative, a text each. A negative may be null.
        config: of the Hub data set.
        limit: number of rows to read; None reads all.

    Raises:
        ValueError: the source cannot be read or is empty, or a row lacks a column or holds no text in it.
    """
    path = Path(source)
    if path.suffix == ".parquet" and path.is_file():
        columns = triple_columns(open_columns(path, []).schema_arrow.names)
        where, rows = f"data.triples={source}, row", enumerate(read_rows(path, columns, limit), 1)
    elif path.suffix in (".jsonl", ".json") and path.is_file():
        where, rows = f"{path}, line", islice(read_json_lines(path), limit)
    elif not path.exists() and not path.suffix:
        from .hub_rows import load_hub_rows

        table = load_hub_rows(source, config, limit)
        rows = enumerate(table.select(triple_columns(table.column_names)).to_pylist(), 1)
        where = f"data.triples={source}, row"
    else:
        raise ValueError(f"data.triples={source} is no parquet file, JSON-lines file or Hub id; name one")
    return triples_task(path.stem, rows, where)


def triple_columns(names: list[str]) -> list[str]:
    """Return those of the columns that are read."""
    return [name for name in names if name in ("query", "positive") or name.startswith("negative")]


def triples_task(name: str, rows: Iterable[tuple[int, dict]], where: str) -> tuple[RetrievalTask, Negatives]:
    """See `load_triples`. A text that is both positive and negative of a query is its positive.

    Args:
        rows: with their numbers.
        where: how an error begins that names a row, before its number.
    """
    queries, documents, answers, negatives = {}, {}, {}, {}
    for number, row in rows:
        check_row(row, f"{where} {number}")
        qid, positive = text_id(row["query"]), text_id(row["positive"])
        queries[qid], documents[positive] = row["query"], row["positive"]
        answers.setdefault(qid, []).append(positive)
        for text in filter(None, (row[column] for column in row if column.startswith("negative"))):
            documents[text_id(text)] = text
            negatives.setdefault(qid, []).append(text_id(text))
    query_rows = [{"qid": qid, "query": text, "answer_pids": answers[qid]} for qid, text in queries.items()]
    document_rows = [{"pid": pid, "passage": text} for pid, text in documents.items()]
    task = make_task(name, "train", query_rows, document_rows)
    return task, {
        qid: [pid for pid in dict.fromkeys(pids) if pid not in task.qrels[qid]] for qid, pids in negatives.items()
    }


def check_row(row: dict, where: str):
    """Raise ValueError unless every column that is read holds text; a negative may be null."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} holds no object with query and positive, but {row!r:.80}")
    for column in ("query", "positive"):
        if column not in row:
            raise ValueError(f"{where} lacks the column {column!r}; it has {list(row)}")
    for column in triple_columns(list(row)):
        value = row[column]
        if not isinstance(value, str) and (value is not None or not column.startswith("negative")):
            held = "null" if value is None else f"a {type(value).__name__}"
            raise ValueError(f"{where} holds {held} in the column {column!r}, which takes one text; correct or drop it")


def text_id(text: str) -> str:
    """Return an id that depends on the text alone."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]
