"""Sections, tables and groups of a report, for tests to look into."""

from m2bert.eval.report.blocks import Table
from m2bert.eval.report.pages import build_sections
from m2bert.eval.report.results import Results


def sections_of(*records) -> dict:
    """{title: section} of a report on these records."""
    by_kind = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    return {section.title: section for section in build_sections(Results(by_kind))}


def table_of(section, index=0) -> dict[str, list]:
    """{first cell: {column: cell}} of a section's table; a column that occurs twice keeps its first."""
    table = [block for block in section.blocks if isinstance(block, Table)][index]
    return {
        cells[0].text: dict(reversed(list(zip(table.header, cells, strict=True))))
        for group in table.groups
        for cells in group.rows
    }


def groups_of(section) -> dict[str, list[str]]:
    """{title of a group: first cells of its rows} of a section's first table."""
    table = next(block for block in section.blocks if isinstance(block, Table))
    return {group.title: [cells[0].text for cells in group.rows] for group in table.groups}
