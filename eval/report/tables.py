"""The pieces of a report, as Markdown (sections, tables, numbers, the table of sources), and the paper's numbers.

A text is escaped when it is put into a page (`escape`), unless it is `Markdown` already. What the paper prints is in
paper.json: {"source": citation, "models": {name: properties}, "tables": {number: table}, "locov1": what mteb asks of
its tasks, "errata": [...]}.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import NamedTuple

MINUS = "\N{MINUS SIGN}"
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
DASH = "\N{EN DASH}"  # for a number that was not measured
WIDEST_COLUMN_CHARS = 60  # up to which the columns of the source text are aligned


@cache
def read_paper() -> dict:
    """Return what paper.json holds."""
    return json.loads(files("m2bert.eval.report").joinpath("paper.json").read_text(encoding="utf-8"))


def paper_table(name: str) -> dict:
    """Return {"title", "measure", "values"} of a table, and "metric" where the measure is not mteb's main score."""
    return read_paper()["tables"][name]


def paper_values(table: str) -> dict[str, dict[str, float]]:
    """Return {row: {column: number}}, scores in points; rows are models or, in Tables 11 and 12, tasks."""
    return paper_table(table)["values"]


def paper_value(table: str, row: str | None, column: str) -> float | None:
    """Return one number, or None if the paper does not print it."""
    return paper_values(table).get(row, {}).get(column)


def paper_columns(table: str) -> list[str]:
    """Return every column that some row has, in the paper's order."""
    return list(dict.fromkeys(column for row in paper_values(table).values() for column in row))


def paper_mean(table: str, row: str | None, columns: list[str]) -> float | None:
    """Return the mean of a row's numbers in these columns, None if it lacks one; the printed average may differ."""
    present = [paper_value(table, row, column) for column in columns]
    return None if not present or None in present else sum(present) / len(present)


def paper_ranked(table: str, columns: list[str]) -> list[str]:
    """Return the rows that have all of these columns, the best mean first."""
    means = {row: paper_mean(table, row, columns) for row in paper_values(table)}
    return sorted((row for row in means if means[row] is not None), key=lambda row: -means[row])


def row_of(record: dict) -> str | None:
    """Return the row of the paper's tables that a record repeats: the one it names, or BM25's."""
    return record.get("paper_row") or ("BM25" if record.get("encoder") == "bm25" else None)


class Markdown(str):
    """Text that is Markdown already, which `escape` leaves as it is."""


class Plot(NamedTuple):
    """A picture: the name of its file without an ending, the SVG file's text, and its caption."""

    name: str
    svg: str
    caption: str


class Section(NamedTuple):
    """A heading, and the paragraphs, tables and plots below it. `tables` are the paper's tables that it answers."""

    title: str
    blocks: list[str | Plot]
    tables: tuple[str, ...] = ()
    level: int = 2


def escape(text: str) -> Markdown:
    """Return Markdown that shows a text as it is, on one line."""
    if isinstance(text, Markdown):
        return text
    text = re.sub(r"([\\`*{}\[\]<>|~$&])", r"\\\1", re.sub(r"[^\S\u00a0]+", " ", text).strip())
    text = re.sub(r"(?<!\w)_|_(?!\w)|^(?=[#+-]+(\s|$)|=+$)", lambda match: "\\" + match[0], text)
    return Markdown(re.sub(r"^(\d+)(?=[.)](\s|$))", r"\1\\", text))


def bold(text: str) -> Markdown:
    """Return the text in bold."""
    return Markdown(f"**{escape(text)}**")


def printed(text: str) -> Markdown:
    """Return the text in italics, which stand for the paper's numbers."""
    return Markdown(f"*{escape(text)}*" if text else "")


def paper_row(name: str, *texts: str) -> list[str]:
    """Return a row of the paper's numbers."""
    return [printed(text) for text in (f"{name} (paper)", *texts)]


def table(caption: str, header: list[str], rows: list[list[str]], words: int = 1, folded: bool = False) -> Markdown:
    """Return a caption and a table.

    Args:
        rows: cells; a row that is too short is filled up.
        words: the number of columns, from the first, that are aligned to the left; the others hold numbers.
        folded: make the caption a heading of level 4, below which the HTML page folds everything.
    """
    lines = [[*map(escape, cells), *[""] * (len(header) - len(cells))] for cells in (header, *rows)]
    widths = [min(max(map(len, [*column, "----"])), WIDEST_COLUMN_CHARS) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width if i < words else "-" * (width - 1) + ":" for i, width in enumerate(widths)])
    text = f"{'#### ' * folded}{escape(caption)}\n"
    for cells in lines:
        columns = enumerate(zip(cells, widths, strict=True))
        padded = [cell.ljust(width) if i < words else cell.rjust(width) for i, (cell, width) in columns]
        text += f"\n| {' | '.join(padded)} |"
    return Markdown(text)


def printed_table(
    caption: str, name: str, form: Callable[[float | None], str], heading: Callable[[str], str] = str
) -> Markdown:
    """Return a table of the paper as it is printed, its numbers written by `form` and its columns by `heading`."""
    columns = paper_columns(name)
    rows = [paper_row(row, *(form(paper_value(name, row, column)) for column in columns)) for row in paper_values(name)]
    return table(caption, ["model", *map(heading, columns)], rows)


def errata(*tables: str) -> list[Markdown]:
    """Return a quotation that lists the paper's errors in these tables, or nothing."""
    found = [erratum["text"] for erratum in read_paper()["errata"] if set(erratum["tables"]) & set(tables)]
    items = [f"> - {escape(text)}" for text in found]
    return [Markdown("\n".join(["> Errors in the paper that matter here:", ">", *items]))] if items else []


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with `digits` digits after the point, thousands set apart, or a dash."""
    return DASH if value is None else f"{value:,.{digits}f}".replace("-", MINUS)


def points(share: float | None) -> str:
    """Return a score from 0 to 1 as points."""
    return number(None if share is None else 100 * share)


def difference(ours: float, theirs: float | None) -> str:
    """Return ours minus theirs, in points, with its sign."""
    return DASH if theirs is None else f"{ours - theirs:+.1f}".replace("-", MINUS)


def interval(bounds: list[float] | tuple[float, float] | None) -> str:
    """Return two scores from 0 to 1 as points."""
    return DASH if bounds is None else f"{points(bounds[0])} to {points(bounds[1])}"


def score(entry: dict | None) -> str:
    """Return the mean of a group of queries with its interval, in points, or a dash."""
    if not entry or entry.get("ndcg_at_10") is None:
        return DASH
    return f"{points(entry['ndcg_at_10'])} ({interval(entry.get('interval_95'))})"


def seconds(value: float | None) -> str:
    """Return seconds with three significant digits."""
    return DASH if value is None else number(value, 0) if value >= 100 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """Return a share in per cent without decimals; less than all never reads as 100 %."""
    return DASH if share is None else f"{min(round(100 * share), 99 if share < 1 else 100)}{NO_BREAK_SPACE}%"


def shorten(fingerprint: str | None) -> str:
    """Return the first digits of long hexadecimal numbers; other texts as they are."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{8,}\b", r"\1", fingerprint) if fingerprint else DASH


def data_of(record: dict) -> str:
    """Return the data of a record: task, split, and revision or fingerprint."""
    if "task" not in record:
        return DASH
    version = record.get("revision") or record.get("data_fingerprint")
    return f"{record['task']}, {record['split']}" + (f" ({shorten(version)})" if version else "")


class Sources:
    """Number the records of a report in the order in which it first names them."""

    def __init__(self):
        self._records: dict[int, dict] = {}  # {id of a record: the record}

    def link(self, text: str, record: dict) -> Markdown:
        """Return a text that leads to the record's row in the table of sources."""
        self._records.setdefault(id(record), record)
        return Markdown(f"{escape(text)} [{list(self._records).index(id(record)) + 1}](#sources)")

    def system(self, record: dict) -> Markdown:
        """Return the name of the record's system, with its link."""
        return self.link(record["system"], record)

    def section(self) -> Section:
        """Return the table of sources, and the package versions that it names by letters."""
        versions: dict[str, str] = {}  # {packages: letter}
        rows = []
        for number, record in enumerate(self._records.values(), 1):
            packages = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
            letter = versions.setdefault(packages, _letter(len(versions))) if packages else DASH
            trained_on = "; ".join(record.get("trained_on") or []) or DASH
            device = ", ".join(filter(None, [record.get("device"), record.get("dtype")])) or DASH
            model = [_policy_of(record), shorten(record.get("model_fingerprint")), trained_on]
            rows.append([str(number), record["system"], *model, data_of(record), letter, device, record["date"]])
        caption = "Models and data by the first digits of their fingerprints. Data from the Hub by revision."
        header = ["No.", "system", "policy", "model", "trained on", "data", "versions", "device", "date"]
        explained = [f"Versions {letter}: {packages}." for packages, letter in versions.items()]
        return Section("Sources", [table(caption, header, rows, words=len(header)), *explained])


def _policy_of(record: dict) -> str:
    """Return a record's policy, and the settings of a hybrid."""
    hybrid = record.get("hybrid") or {}
    settings = [f"{hybrid['depth']} candidates"] if hybrid.get("depth") else []
    if hybrid.get("weight") is not None:
        chosen = f"{points(hybrid.get('development_ndcg_at_10'))} on {hybrid.get('development_split')}"
        settings = [f"weight {hybrid['weight']} of the model, chosen by nDCG@10 {chosen}"]
    return "; ".join([record.get("policy") or DASH, *settings])


def _letter(index: int) -> str:
    """Return A, B, ... Z, AA, AB, ..."""
    first, last = divmod(index, 26)
    return (_letter(first - 1) if first else "") + chr(ord("A") + last)
