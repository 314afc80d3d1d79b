"""Retrieval tasks in the folders of BEIR (Thakur et al., 2021), each file also packed as .gz:

my-folder/
    corpus.jsonl      _id, text, perhaps title
    queries.jsonl     _id, text
    qrels/SPLIT.tsv   query-id, corpus-id, score: one judgment a line, after a line of names
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from m2bert.files import read_json_lines, read_text, visible
from m2bert.schema import FOREIGN, Schema, checked

from .schema import Qrels, RetrievalTask, judged_task, texts_by_id, where_of


class Row(Schema):
    """A line of corpus.jsonl or queries.jsonl; a text that is missing is empty."""

    model_config = FOREIGN
    identifier: str = Field(alias="_id")
    title: str | None = None
    text: str | None = None


def load_beir_folder(folder: Path, split: str) -> RetrievalTask:
    """Return the task of a folder, called by the folder's name, with the queries that its split judges.

    A document's text is its title, a space and its text, without space around them, as in BEIR.
    """
    name, where = folder.resolve().name, where_of(folder.resolve().name, split, str(folder))
    qrels = read_qrels(packed_or_not(folder / "qrels" / f"{split}.tsv"))
    corpus, asked = (read_rows(packed_or_not(folder / file)) for file in ("corpus.jsonl", "queries.jsonl"))
    pairs = ((row.identifier, f"{row.title or ''} {row.text or ''}".strip()) for row in corpus)
    documents = texts_by_id("documents", pairs, where)
    pairs = ((row.identifier, row.text or "") for row in asked if row.identifier in qrels)
    queries = texts_by_id("queries that the split judges", pairs, where)
    if unknown := [qid for qid in qrels if qid not in queries]:
        raise ValueError(f"{where}: {len(unknown)} judged queries are not in queries.jsonl, such as {unknown[0]!r}")
    return judged_task(name, split, queries, documents, {qid: qrels[qid] for qid in queries}, source=str(folder))


def packed_or_not(path: Path) -> Path:
    """Return the path of a file, or of it packed as .gz. Raises ValueError if neither is there."""
    found = [there for there in (path, path.with_name(f"{path.name}.gz")) if there.is_file()]
    if not found:
        others = ", ".join(other.name for other in visible(path.parent, "*") if other.is_file()) or "no file"
        raise ValueError(f"{path} is not there, nor packed as .gz; its folder holds {others}")
    return found[0]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of corpus.jsonl or queries.jsonl. Errors name the line."""
    return (checked(Row, row, f"{path}, line {number}") for number, row in read_json_lines(path))


def read_qrels(path: Path) -> Qrels:
    """Return the judgments of qrels/SPLIT.tsv. Errors name the line."""
    qrels: Qrels = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        cells = line.split("\t")
        if not line.strip() or (number == 1 and not is_whole(cells[-1])):  # the names of the columns
            continue
        if len(cells) != 3 or not is_whole(cells[2]):
            raise ValueError(f"{path}, line {number}: {line[:80]!r} is no query-id, corpus-id and whole score, by tabs")
        judged, grade = qrels.setdefault(cells[0], {}), int(cells[2])
        if judged.setdefault(cells[1], grade) != grade:
            first = f"query {cells[0]!r} judges document {cells[1]!r} as {judged[cells[1]]} and {grade}"
            raise ValueError(f"{path}, line {number}: {first}; leave one")
    return qrels


def is_whole(text: str) -> bool:
    """Return whether a text is a whole number."""
    return text.strip().removeprefix("-").isdecimal()
