"""Sections, tables and groups of a report's Markdown, for tests to look into."""

import re

from m2bert.eval.report.page import build_sections, markdown_text


def sections_of(*records) -> dict[str, str]:
    """{title: Markdown below it} of a report on these records."""
    by_kind = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    text = markdown_text(build_sections(by_kind, [], []), "plots")
    _, *parts = re.split(r"^###? ", text, flags=re.MULTILINE)
    return {plain(part.partition("\n")[0]): part.partition("\n")[2] for part in parts if part}


def plain(cell: str) -> str:
    """A cell without emphasis, backslashes and its link to a source."""
    cell = re.sub(r" \[\d+\]\(#sources\)$", "", cell.strip())
    return re.sub(r"(?<!\\)\*+|\\(?=\W)", "", cell)


def rows_of(section: str, index=0) -> list[list[str]]:
    """Cells of a section's table, the header first."""
    tables = re.findall(r"(?:^\|.*\n?)+", section, flags=re.MULTILINE)
    lines = tables[index].strip().split("\n")
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in [lines[0], *lines[2:]]]


def table_of(section: str, index=0) -> dict[str, dict[str, str]]:
    """{first cell: {column: cell}} of a section's table; a column that occurs twice keeps its first."""
    header, *rows = rows_of(section, index)
    names = [plain(name) for name in header]
    return {plain(cells[0]): dict(reversed(list(zip(names, cells, strict=True)))) for cells in rows}


def groups_of(section: str) -> dict[str, list[str]]:
    """{title of a group: our systems in it} of a section's first table."""
    groups = {}
    for first, *others in rows_of(section)[1:]:
        if first.startswith("**") and not any(others):
            names = groups[plain(first)] = []
        elif "(paper)" not in first:
            names.append(plain(first))
    return {title: names for title, names in groups.items() if names}
