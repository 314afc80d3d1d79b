"""LoCoV1 and LoCoV0 at a glance: systems by tasks, with averages over the tasks that all of them share."""

from . import paper
from .blocks import Cell, Errata, Group, Prose, Section, Table, number, paper_row, points, row
from .groups import GROUPS, column_of, grouped, paper_rows, paper_table
from .sources import shorten

TABLES = {"15": ("LoCoV1", ("3", "15")), "23": ("LoCoV0", ("23",))}  # name, and the tables its scores belong to
DataGroups = dict[tuple[str, str, str], list[dict]]


def overview_section(table: str, groups: DataGroups) -> Section:
    """A benchmark's heading, the paper's errata, and, from two tasks on, the table of systems by tasks."""
    name, tables = TABLES[table]
    chosen = in_paper_order(table, groups)
    blocks = [Errata(paper.errata(*tables))]
    if len(chosen) > 1:
        blocks.insert(0, overview_table(table, chosen))
    else:
        number_of_tasks = len(paper.columns(table))
        blocks.insert(0, Prose(f"1 of {number_of_tasks} tasks was measured here, so there is no average."))
    plural = "s" if len(tables) > 1 else ""
    return Section(f"{name} (Table{plural} {' and '.join(tables)})", blocks, tables)


def in_paper_order(table: str, groups: DataGroups) -> DataGroups:
    """The groups of this table's tasks, as the table orders them."""
    order = paper.columns(table)
    chosen = [key for key, records in groups.items() if paper_table(records[0]) == table]
    return {key: groups[key] for key in sorted(chosen, key=lambda key: (order.index(column_of(groups[key][0])), key))}


def overview_table(table: str, groups: DataGroups) -> Table:
    """Systems by tasks. `groups` are of one table of the paper; data that differ have a column each."""
    keys = list(groups)
    tasks = [column_of(groups[key][0]) for key in keys]
    systems: dict[str, dict[tuple, dict]] = {}
    for key, records in groups.items():
        for record in records:
            systems.setdefault(record["system"], {})[key] = record
    shared = shared_keys(keys, tasks, systems)
    shared_tasks = [tasks[keys.index(key)] for key in shared]
    total = len(paper.columns(table))
    header = ["system", *(_heading(key, task, tasks.count(task) > 1) for key, task in zip(keys, tasks, strict=True))]
    if len(shared) > 1:
        header.append(f"average over {len(shared)} of {total} tasks")
    ours = ranked(systems, shared)
    theirs = paper_rows(table, list(dict.fromkeys(tasks)))
    rows = []
    for title in GROUPS.values():
        members = [_our_row(name, systems[name], keys, shared) for name in ours.get(title, [])]
        members += [_paper_row(name, table, tasks, shared_tasks) for name in theirs.get(title, [])]
        if members:
            rows.append(Group(title, members))
    return Table(_caption(table, shared, total), header, rows)


def shared_keys(keys: list[tuple], tasks: list[str], systems: dict[str, dict[tuple, dict]]) -> list[tuple]:
    """The data that every system was measured on, without tasks that stand here in two versions."""
    return [
        key
        for key, task in zip(keys, tasks, strict=True)
        if tasks.count(task) == 1 and all(key in records for records in systems.values())
    ]


def ranked(systems: dict[str, dict[tuple, dict]], shared: list[tuple]) -> dict[str, list[str]]:
    """Names of systems by group, the best average first where there is one.

    A row of tasks on some of which the model was fine-tuned belongs to the fine-tuned.
    """
    summaries = []
    for name, records in systems.items():
        counted = [records[key] for key in shared] or list(records.values())
        mean = sum(record["ndcg_at_10"] for record in counted) / len(counted)
        claims = {record["claim"] for record in records.values()}
        claim = next((claim for claim in ("fine-tuned", "not stated") if claim in claims), min(claims))
        summaries.append({**next(iter(records.values())), "system": name, "ndcg_at_10": mean, "claim": claim})
    return {title: [record["system"] for record in members] for title, members in grouped(summaries).items()}


def _our_row(name: str, records: dict[tuple, dict], keys: list[tuple], shared: list[tuple]) -> list[Cell]:
    cells = row(name, *(points(records[key]["ndcg_at_10"] if key in records else None) for key in keys))
    if len(shared) > 1:
        cells.append(Cell(points(sum(records[key]["ndcg_at_10"] for key in shared) / len(shared))))
    return cells


def _paper_row(name: str, table: str, tasks: list[str], shared_tasks: list[str]) -> list[Cell]:
    average = [number(paper.mean(table, name, shared_tasks))] if len(shared_tasks) > 1 else []
    return paper_row(name, *(number(paper.value(table, name, task)) for task in tasks), *average)


def _heading(key: tuple, task: str, ambiguous: bool) -> str:
    return f"{task} ({shorten(key[2])})" if ambiguous else task


def _caption(table: str, shared: list[tuple], total: int) -> str:
    caption = (
        f"nDCG@10 in points; intervals and differences are with each task below. Rows in italics are printed in the "
        f"paper (Table {table}). Fine-tuned are systems that were so on any of these tasks."
    )
    if len(shared) > 1:
        caption += (
            f" Averages are over the {len(shared)} of {total} tasks that every system here was measured on; the "
            "paper's rows are averaged over the same tasks, from its columns."
        )
    if 1 < len(shared) < total:
        caption += " They are not the averages that the paper prints."
    return caption
