"""The numbers that the paper prints (paper.json), and where it contradicts itself."""

import json
from functools import cache
from importlib.resources import files


@cache
def _paper() -> dict:
    return json.loads(files("m2bert.eval.report").joinpath("paper.json").read_text(encoding="utf-8"))


def table_numbers() -> list[str]:
    """The numbers of all tables of the paper."""
    return list(_paper()["tables"])


def title(table: str) -> str:
    """What a table is about."""
    return _paper()["tables"][table]["title"]


def measure(table: str) -> str:
    """What its numbers are."""
    return _paper()["tables"][table]["measure"]


def metric(table: str) -> str | None:
    """What mteb calls the paper's measure, where that is not the task's main score."""
    return _paper()["tables"][table].get("metric")


def values(table: str) -> dict[str, dict[str, float]]:
    """{row: {column: number}}, scores in points; rows are models or, in Tables 11 and 12, tasks."""
    return _paper()["tables"][table]["values"]


def value(table: str, row: str | None, column: str) -> float | None:
    """One number, or None if the paper does not print it."""
    return values(table).get(row, {}).get(column)


def row_names() -> set[str]:
    """Every row of any table."""
    return {row for table in table_numbers() for row in values(table)}


def columns(table: str) -> list[str]:
    """Every column that some row has, in the paper's order."""
    return list(dict.fromkeys(column for row in values(table).values() for column in row))


def mean(table: str, row: str, columns: list[str]) -> float | None:
    """Mean of a row's numbers in these columns, or None if it lacks one. Never the average that is printed."""
    present = [value(table, row, column) for column in columns]
    return None if not present or None in present else sum(present) / len(present)


def printed_average(table: str, row: str) -> float | None:
    """The average that stands in the table, right or wrong."""
    return _paper()["tables"][table].get("printed_average", {}).get(row)


def model(name: str) -> dict:
    """{"parameters", "max_tokens", "claim", "vectors"} of a model of the paper."""
    return _paper()["models"][name]


def errata(*tables: str) -> list[str]:
    """What is wrong in any of these tables, each once."""
    return [erratum["text"] for erratum in _paper()["errata"] if set(erratum["tables"]) & set(tables)]


def citation() -> str:
    """Authors, title and place."""
    return _paper()["source"]
