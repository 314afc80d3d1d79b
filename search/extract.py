"""The text of a file as a reader sees it, in reading order: one function a format, and a library behind it.

A block (paragraph, heading, row of a table, subtitle) is one line of the text. What the format knows beside the text
becomes metadata. Every function takes a path and returns documents; what is wrong with a file is raised as Unreadable
or as whatever the library raises.
"""

import csv
import re
from collections.abc import Callable
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from m2bert.files import read_json_lines
from m2bert.text_files import TEXTS, read_described, read_encoded, suffix_of

HYPHEN = "\ufffe"  # PDFium writes it for a hyphen at the end of a line, and goes on with the next line
Value = str | int | float | bool
NUMBER = re.compile(r"(-?(0|[1-9]\d{0,14})(\.\d{0,14}[1-9]|\.0)?)?")  # not 007, nor 1.10, which may be names


class Document(NamedTuple):
    """A text, as it is embedded and cited."""

    id: str  # unique in an index: of a file its absolute path, of a row in a file PATH#ROW
    text: str
    pages: list[int] = []  # offset in characters at which each page begins, the first first; [] without pages
    metadata: dict[str, Value] = {}  # title, author, date, ...: what the format knows, and a row's other columns


class Unreadable(ValueError):
    """Say why a file gives no text, in plain words."""


def format_of(path: Path) -> str:
    """Return the suffix that tells the format, in lower case and without `.gz` where that format may be packed."""
    return suffix_of(path) if suffix_of(path) in PACKABLE else path.suffix.lower()


def extract_text(path: Path) -> list[Document]:
    """Read what training and evaluation read too: plain text, Markdown, HTML, subtitles and mail."""
    text, known = read_described(path)
    return [Document(str(path), text, [], _present(**known))]


def extract_table(path: Path) -> list[Document]:
    """Read a CSV: with a column text or passage a document a row, else the file as it is written."""
    from m2bert.eval.tasks.load import read_rows

    text = read_encoded(path)
    head = text.partition("\n")[0]
    header = next(csv.reader([head], delimiter=max(",;\t", key=head.count)))
    names = [name.strip().lower() for name in header]
    if not (column := next((name for name in ("text", "passage") if name in names), "")):
        return [Document(str(path), text)]
    rows = list(read_rows(path, (column,), (column,)))
    for name in set(names) - {column, "id"}:
        for (_, row), value in zip(rows, _numbers([row[name] for _, row in rows]), strict=True):
            row[name] = value
    return _documents(path, rows, column)


def extract_json_lines(path: Path) -> list[Document]:
    """Read {"id", "text", **metadata} a line; without an id, the line's number is the row's name."""
    rows = list(read_json_lines(path))
    for line, row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
            raise Unreadable(f"line {line} has no text; each line is an object with a text that is not empty")
        for key, value in row.items():
            if not isinstance(value, Value | None):
                raise Unreadable(f"line {line}: {key!r} is nested; metadata are strings, numbers, true and false")
    return _documents(path, rows, "text")


def extract_docx(path: Path) -> list[Document]:
    """Read paragraphs, tables, links, text boxes and insertions in document order, then the notes.

    Deleted text, comments, headers, footers and the numbers that Word counts itself are not read.
    """
    import docx
    from docx.opc.constants import RELATIONSHIP_TYPE as KINDS

    with open(path, "rb") as file:
        if file.read(8) == bytes.fromhex("d0cf11e0a1b11ae1"):  # the container of Word 97, and of encrypted files
            locked = "EncryptedPackage".encode("utf-16-le") in file.read()
            raise Unreadable("encrypted: save it without a password" if locked else "Word 97's .doc: save it as .docx")
    document = docx.Document(str(path))
    texts = [_word_text(document.element.body)]
    for link in document.part.rels.values():
        if link.reltype in (KINDS.FOOTNOTES, KINDS.ENDNOTES):
            texts.append(_word_text(docx.oxml.parse_xml(link.target_part.blob)))
    lines = (line.strip() for line in "\n".join(texts).split("\n"))
    metadata = {}
    if any(link.reltype == KINDS.CORE_PROPERTIES for link in document.part.package.rels.values()):
        known = document.core_properties  # python-docx makes some up if there are none
        metadata = _present(
            title=known.title, author=known.author, subject=known.subject, date=str(known.created or "")[:10]
        )
    return [Document(str(path), "\n".join(filter(None, lines)), [], metadata)]


def _word_text(node: Any) -> str:
    """Return the text below a node of WordprocessingML; lines may be empty."""
    name = node.tag.rpartition("}")[2]
    if name in ("t", "tab", "br", "cr", "noBreakHyphen"):
        return {"t": node.text or "", "tab": "\t", "noBreakHyphen": "-"}.get(name, "\n")
    if name in ("pPr", "rPr", "del", "moveFrom", "Fallback"):  # a fallback says the same again
        return ""
    parts = [_word_text(child) for child in node.iterchildren("*")]
    if name == "tr":
        return "\n" + "\t".join(filter(None, (" ".join(part.split()) for part in parts))) + "\n"
    return "\n" + "".join(parts) + "\n" if name == "p" else "".join(parts)


def extract_pdf(path: Path) -> list[Document]:
    """Read the text of a PDF, a line a line; words that a line's end divides are joined. PDFium is not thread-safe."""
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise Unreadable("encrypted: save it without a password") from error
        raise
    with closing(pdf):
        texts = []
        for page in pdf:
            with closing(page), closing(page.get_textpage()) as text_page:
                text = text_page.get_text_range().replace("\r\n", "\n").replace("\r", "\n")
                text = re.sub(rf"{HYPHEN}(?=[^\W\d_A-Z])", "", text).replace(HYPHEN, "-")
                texts.append(re.sub(r"[\x00-\x08\x0b-\x1f]", "", text).strip())
        known = pdf.get_metadata_dict()
    blank = [str(number) for number, text in enumerate(texts, 1) if not text.strip()]
    if len(blank) == len(texts):
        raise Unreadable(f"scanned: none of its pages ({len(texts)}) has text; recognize it first (ocrmypdf IN OUT)")
    pages = [0, *accumulate(len(text) + 1 for text in texts)][:-1]
    made = re.match(r"D:(\d{4})(\d\d)(\d\d)", known.get("CreationDate", ""))
    metadata = _present(title=known.get("Title"), author=known.get("Author"), subject=known.get("Subject"),
                        date="-".join(made.groups()) if made else "", pages_without_text=", ".join(blank))  # fmt: skip
    return [Document(str(path), "\n".join(texts), pages, metadata)]


def _documents(path: Path, rows: list[tuple[int, dict[str, Any]]], column: str) -> list[Document]:
    """Return a document a row, given as (line, {column: value}). Raises Unreadable if an id stands twice."""
    found: dict[str, Document] = {}
    for line, row in rows:
        key = line if row.get("id") in (None, "") else row["id"]
        if f"{path}#{key}" in found:
            raise Unreadable(f"line {line}: its id {key!r} stands above too; give each row its own")
        metadata = _present(**{name: value for name, value in row.items() if name and name not in ("id", column)})
        found[f"{path}#{key}"] = Document(f"{path}#{key}", row[column], [], metadata)
    return list(found.values())


def _numbers(cells: list[str]) -> list[Value]:
    """Return a column as numbers if each cell that is not empty is written as Python would write such a number."""
    if not all(NUMBER.fullmatch(cell) for cell in cells):
        return cells
    return [(float(cell) if "." in cell else int(cell)) if cell else "" for cell in cells]


def _present(**metadata: Any) -> dict[str, Value]:
    """Return the metadata that say something; strings on one line, and such that UTF-8 can hold them."""
    for name, value in metadata.items():
        if isinstance(value, str):
            metadata[name] = " ".join(value.encode("utf-8", "replace").decode().split())
    return {name: value for name, value in metadata.items() if value not in (None, "")}


PACKABLE: dict[str, Callable[[Path], list[Document]]] = {
    **dict.fromkeys(("", *TEXTS), extract_text),
    ".csv": extract_table,
    ".jsonl": extract_json_lines,
}
FORMATS = {**PACKABLE, ".pdf": extract_pdf, ".docx": extract_docx}
