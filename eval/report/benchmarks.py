"""The paper's tables of other benchmarks: BEIR (4, 14), MTEB (9, 18 to 22) and MLDR (10)."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from . import paper
from .retrieval import column_of
from .tables import (
    DASH,
    Section,
    Sources,
    bold,
    difference,
    errata,
    interval,
    number,
    paper_row,
    printed,
    table,
)

TASK_TABLES = ("14", "18", "19", "20", "21", "22")
PAPER_MODEL, OTHER_MODEL = "M2-BERT-128", "SentenceBERT"  # of Tables 14 and 18 to 22
MLDR = {"mldr", "mldr-en", "multilongdocretrieval"}
MLDR_METHODS = {  # column of Table 10: title, and the method of the records that belong to it
    "exact_search": ("Exact search", None),
    "bm25_rerank": ("BM25's candidates reranked", "rerank"),
}
DEVELOPMENT = {"MSMARCO"}  # benchmarks report its development split; see the paper's errata


class Score(NamedTuple):
    """One number of one system on one task, in points, from a record of either kind."""

    record: dict
    task: str
    points: float
    metric: str


def scores_of(retrieval: Iterable[dict], mteb: Iterable[dict]) -> list[Score]:
    """Return scores on the splits that benchmarks report, without tasks that had documents added.

    Of a task of mteb it is the score by the paper's measure if the record holds it, else the task's main score.
    """
    found = [
        Score(record, column_of(record), 100 * record["ndcg_at_10"], "ndcg_at_10")
        for record in retrieval
        if not record.get("distractors")
    ]
    for record in mteb:
        number_of_table = _table_of(record["task"])
        metric = number_of_table and paper.table(number_of_table).get("metric")
        value = (record.get("other_scores") or {}).get(metric)
        if value is None:
            metric, value = record["metric"], record["value"]
        found.append(Score(record, record["task"], 100 * value, metric))
    return [score for score in found if _is_reported(score.task, score.record["split"])]


def _is_reported(task: str, split: str) -> bool:
    return split == "test" or (split == "dev" and task in DEVELOPMENT)


def benchmark_sections(scores: list[Score], sources: Sources) -> list[Section]:
    """Return a section for each of the paper's tables that has a score, and one for complete groups."""
    by_table = {found: systems for found in TASK_TABLES if (systems := _by_system(found, scores))}
    sections = [_table_section(found, systems, sources) for found, systems in by_table.items()]
    return [*sections, *_averages_section(by_table), *_mldr_section(scores, sources)]


def other_section(mteb: list[dict], sources: Sources) -> Section | None:
    """Return tasks of mteb, or splits of them, that are in none of the paper's tables."""
    known = [id(score.record) for score in scores_of([], mteb) if _table_of(score.task) or score.task.lower() in MLDR]
    rest = [record for record in mteb if id(record) not in known]
    rows = [
        [
            f"{record['task']}, {record['split']}",
            sources.system(record),
            record["metric"],
            number(100 * record["value"]),
        ]
        for record in sorted(rest, key=lambda record: (record["task"], record["split"], -record["value"]))
    ]
    found = table("Main scores, x 100.", ["task", "system", "metric", "points"], rows, words=3)
    return Section("Other tasks of mteb", [found]) if rows else None


def _table_of(task: str) -> str | None:
    return next((found for found in TASK_TABLES if task in paper.columns(found)), None)


def _by_system(number_of_table: str, scores: list[Score]) -> dict[str, dict[str, Score]]:
    """Return {system: {task: score}} in the paper's order of tasks; the split test is preferred."""
    columns = paper.columns(number_of_table)
    systems = defaultdict(dict)
    chosen = (score for score in scores if score.task in columns)
    for score in sorted(chosen, key=lambda score: (columns.index(score.task), score.record["split"] == "test")):
        systems[score.record["system"]][score.task] = score
    return systems


def _mean(found: dict[str, Score]) -> float:
    return sum(score.points for score in found.values()) / len(found)


def _table_section(number_of_table: str, systems: dict[str, dict[str, Score]], sources: Sources) -> Section:
    """Return Table 14 or one of 18 to 22: each system's tasks and their average."""

    def against(name: str, tasks: list[str], ours: float, interval_text: str) -> list[str]:
        model, other, theirs = (paper.mean(number_of_table, row, tasks) for row in (PAPER_MODEL, OTHER_MODEL, name))
        gap = DASH if theirs is None else difference(ours - theirs)
        return [number(ours), interval_text, printed(number(model)), gap, printed(number(other))]

    rows = []
    for system, found in systems.items():
        rows.append([bold(system)])
        models = []
        for task, score in found.items():
            name = paper.row_of(score.record)
            models.append(name if name in paper.values(number_of_table) else PAPER_MODEL)
            split = score.record["split"]
            link = sources.link(task if split == "test" else f"{task}, {split}", score.record)
            bounds = interval(score.record.get("interval_95"))
            rows.append([link, score.metric, *against(models[-1], [task], score.points, bounds)])
        average = f"average over {len(found)} of {len(paper.columns(number_of_table))} tasks"
        rows.append([average, "", *against(models[0], list(found), _mean(found), "")])
    about = paper.table(number_of_table)
    caption = (
        f"Points; in italics what the paper prints ({about['measure']}). The difference is ours minus {PAPER_MODEL}, "
        "or the paper's row of the same system. mteb gives no intervals; metrics have mteb's names. Averages are over "
        "the tasks measured here, the paper's too."
    )
    header = ["task", "metric", "ours", "95 % interval", PAPER_MODEL, "difference", OTHER_MODEL]
    blocks = [table(caption, header, rows, words=2), *errata(number_of_table)]
    return Section(f"{about['title']} (Table {number_of_table})", blocks, (number_of_table,))


def _averages_section(by_table: dict[str, dict[str, dict[str, Score]]]) -> list[Section]:
    """Return Tables 4 and 9, averages of the groups of which a system has every task, or nothing."""
    complete = defaultdict(dict)
    for number_of_table, systems in by_table.items():
        for system, found in systems.items():
            if len(found) == len(paper.columns(number_of_table)):
                complete[system][number_of_table] = _mean(found)
    tables = [found for found in TASK_TABLES if any(found in means for means in complete.values())]
    if not tables:
        return []
    rows = [[system, *(number(means.get(found)) for found in tables)] for system, means in complete.items()]
    for name in (PAPER_MODEL, OTHER_MODEL):
        rows.append(paper_row(name, *(number(paper.mean(found, name, paper.columns(found))) for found in tables)))
    answered = tuple(sorted({"4" if found == "14" else "9" for found in tables}))
    caption = "Only groups with all of their tasks measured. In italics the means of the paper's own columns."
    header = ["system", *(f"{paper.table(found)['title']} (Table {found})" for found in tables)]
    title = f"Averages of complete groups (Table {' and '.join(answered)})"
    return [Section(title, [table(caption, header, rows), *errata(*answered)], answered)]


def _mldr_section(scores: list[Score], sources: Sources) -> list[Section]:
    """Return Table 10, exact search and BM25's candidates ranked again, or nothing."""
    rows = []
    for column, (title, method) in MLDR_METHODS.items():
        found = [
            score
            for score in sorted(scores, key=lambda score: -score.points)
            if score.task.lower() in MLDR and (score.record.get("hybrid") or {}).get("method") == method
        ]
        if not found:
            continue
        rows.append([bold(title)])
        for score in found:
            theirs = paper.value("10", paper.row_of(score.record), column)
            gap = DASH if theirs is None else difference(score.points - theirs)
            bounds = interval(score.record.get("interval_95"))
            rows.append([sources.system(score.record), number(score.points), bounds, printed(number(theirs)), gap])
        models = {name: row[column] for name, row in paper.values("10").items() if column in row}
        rows += [paper_row(name, number(models[name])) for name in sorted(models, key=lambda name: -models[name])]
    caption = "nDCG@10 in points. Rows in italics are printed in the paper."
    header = ["system", "nDCG@10", "95 % interval", "paper", "difference"]
    return [Section("MLDR (Table 10)", [table(caption, header, rows), *errata("10")], ("10",))] if rows else []
