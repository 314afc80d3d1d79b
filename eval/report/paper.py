"""The numbers that the paper prints (paper.json), and where it contradicts itself."""

import json
from functools import cache
from importlib.resources import files


@cache
def printed() -> dict:
    """Return {"source": citation, "models": {name: properties}, "tables": {number: table}, "errata": [...]}."""
    return json.loads(files("m2bert.eval.report").joinpath("paper.json").read_text(encoding="utf-8"))


def table(name: str) -> dict:
    """Return {"title", "measure", "values"} of a table, and "metric" where the measure is not mteb's main score."""
    return printed()["tables"][name]


def values(name: str) -> dict[str, dict[str, float]]:
    """Return {row: {column: number}}, scores in points; rows are models or, in Tables 11 and 12, tasks."""
    return table(name)["values"]


def value(table: str, row: str | None, column: str) -> float | None:
    """Return one number, or None if the paper does not print it."""
    return values(table).get(row, {}).get(column)


def row_names() -> set[str]:
    """Return every row of any table."""
    return {row for table in printed()["tables"] for row in values(table)}


def columns(table: str) -> list[str]:
    """Return every column that some row has, in the paper's order."""
    return list(dict.fromkeys(column for row in values(table).values() for column in row))


def mean(table: str, row: str | None, columns: list[str]) -> float | None:
    """Return the mean of a row's numbers in these columns, which the printed average may differ from.

    None if the row lacks one of them.
    """
    present = [value(table, row, column) for column in columns]
    return None if not present or None in present else sum(present) / len(present)


def ranked(table: str, columns: list[str]) -> list[str]:
    """Return the rows that have all of these columns, the best mean first."""
    means = {row: mean(table, row, columns) for row in values(table)}
    return sorted((row for row in means if means[row] is not None), key=lambda row: -means[row])


def errata(*tables: str) -> list[str]:
    """Return what is wrong in any of these tables, each once."""
    return [erratum["text"] for erratum in printed()["errata"] if set(erratum["tables"]) & set(tables)]


def row_of(record: dict) -> str | None:
    """Return the row of the paper's tables that a record repeats: the one it names, or BM25's."""
    return record.get("paper_row") or ("BM25" if record.get("encoder") == "bm25" else None)
