"""The paper's tables of other benchmarks: BEIR (4, 14), MTEB (9, 18 to 22) and MLDR (10)."""

from collections.abc import Iterable
from dataclasses import dataclass

from . import paper
from .blocks import (
    DASH,
    Cell,
    Errata,
    Group,
    Section,
    Table,
    difference,
    interval,
    number,
    paper_row,
    plain_table,
    row,
)
from .groups import column_of, paper_name
from .sources import Sources

TASK_TABLES = ("14", "18", "19", "20", "21", "22")
PAPER_MODEL = "M2-BERT-128"  # of Tables 14 and 18 to 22; the other one there is SentenceBERT
MLDR = {"mldr", "mldr-en", "multilongdocretrieval"}
DEVELOPMENT = {"MSMARCO"}  # benchmarks report its development split; see the paper's errata


@dataclass(frozen=True)
class Score:
    """One number of one system on one task, in points, from a record of either kind."""

    record: dict
    task: str
    points: float
    metric: str

    @property
    def system(self) -> str:
        return self.record["system"]

    @property
    def split(self) -> str:
        return self.record["split"]

    @property
    def bounds(self) -> tuple[float, float] | None:
        return self.record.get("interval_95")


def scores_of(retrieval: Iterable[dict], mteb: Iterable[dict]) -> list[Score]:
    """Scores on the splits that benchmarks report, without tasks that had documents added."""
    found = [
        Score(record, column_of(record), 100 * record["ndcg_at_10"], "ndcg_at_10")
        for record in retrieval
        if not record.get("distractors")
    ]
    found += map(_mteb_score, mteb)
    return [score for score in found if score.split == "test" or (score.task in DEVELOPMENT and score.split == "dev")]


def _mteb_score(record: dict) -> Score:
    """A record's score by the paper's measure if it holds it, else the task's main score."""
    table = _table_of(record["task"])
    metric = table and paper.metric(table)
    value = (record.get("other_scores") or {}).get(metric)
    if value is None:
        metric, value = record["metric"], record["value"]
    return Score(record, record["task"], 100 * value, metric)


def benchmark_sections(scores: list[Score], sources: Sources) -> list[Section]:
    """One section for each of the paper's tables that has a score, and one for complete groups."""
    sections = [_task_section(table, scores, sources) for table in TASK_TABLES]
    return list(filter(None, [*sections, _averages_section(scores), _mldr_section(scores, sources)]))


def other_section(mteb: list[dict], sources: Sources) -> Section | None:
    """Tasks of mteb, or splits of them, that are in none of the paper's tables."""
    known = [score.record for score in scores_of([], mteb) if _table_of(score.task) or score.task.lower() in MLDR]
    rest = [record for record in mteb if record not in known]
    if not rest:
        return None
    rows = [
        row(
            f"{record['task']}, {record['split']}",
            sources.cell(record),
            record["metric"],
            number(100 * record["value"]),
        )
        for record in sorted(rest, key=lambda record: (record["task"], record["split"], -record["value"]))
    ]
    header = ["task", "system", "metric", "points"]
    return Section("Other tasks of mteb", [plain_table("Main scores, x 100.", header, rows, text_columns=3)])


def _table_of(task: str) -> str | None:
    return next((table for table in TASK_TABLES if task in paper.columns(table)), None)


def _by_system(table: str, scores: list[Score]) -> dict[str, dict[str, Score]]:
    """{system: {task: score}} of one of the paper's tables, tasks in the paper's order; the split test goes first."""
    columns = paper.columns(table)
    systems: dict[str, dict[str, Score]] = {}
    chosen = (score for score in scores if score.task in columns)
    for score in sorted(chosen, key=lambda score: (columns.index(score.task), score.split == "test")):
        systems.setdefault(score.system, {})[score.task] = score
    return systems


def _task_section(table: str, scores: list[Score], sources: Sources) -> Section | None:
    systems = _by_system(table, scores)
    if not systems:
        return None
    groups = []
    for system, found in systems.items():
        rows = [_task_row(table, score, sources) for score in found.values()]
        groups.append(Group(system, [*rows, _average_row(table, found)]))
    caption = (
        f"Points; in italics what the paper prints ({paper.measure(table)}). The difference is ours minus "
        f"{PAPER_MODEL}, or the paper's row of the same system. mteb gives no intervals; metrics have mteb's "
        "names. Averages are over the tasks measured here, the paper's too."
    )
    header = ["task", "metric", "ours", "95 % interval", PAPER_MODEL, "difference", "SentenceBERT"]
    blocks = [Table(caption, header, groups, text_columns=2), Errata(paper.errata(table))]
    return Section(f"{paper.title(table)} (Table {table})", blocks, (table,))


def _paper_model(table: str, score: Score) -> str:
    name = paper_name(score.record)
    return name if name in paper.values(table) else PAPER_MODEL


def _task_row(table: str, score: Score, sources: Sources) -> list[Cell]:
    theirs = paper.value(table, _paper_model(table, score), score.task)
    return row(
        Cell(
            score.task if score.split == "test" else f"{score.task}, {score.split}", source=sources.number(score.record)
        ),
        score.metric,
        number(score.points),
        interval(score.bounds),
        Cell(number(paper.value(table, PAPER_MODEL, score.task)), paper=True),
        difference(score.points - theirs),
        Cell(number(paper.value(table, "SentenceBERT", score.task)), paper=True),
    )


def _average_row(table: str, found: dict[str, Score]) -> list[Cell]:
    tasks = list(found)
    ours = sum(score.points for score in found.values()) / len(found)
    theirs = paper.mean(table, _paper_model(table, next(iter(found.values()))), tasks)
    return row(
        f"average over {len(found)} of {len(paper.columns(table))} tasks",
        "",
        number(ours),
        "",
        Cell(number(paper.mean(table, PAPER_MODEL, tasks)), paper=True),
        difference(ours - theirs),
        Cell(number(paper.mean(table, "SentenceBERT", tasks)), paper=True),
    )


def _averages_section(scores: list[Score]) -> Section | None:
    """Tables 4 and 9: averages of the groups of which a system has every task."""
    complete: dict[str, dict[str, float]] = {}
    for table in TASK_TABLES:
        for system, found in _by_system(table, scores).items():
            if len(found) == len(paper.columns(table)):
                mean = sum(score.points for score in found.values()) / len(found)
                complete.setdefault(system, {})[table] = mean
    tables = [table for table in TASK_TABLES if any(table in means for means in complete.values())]
    if not tables:
        return None
    rows = [row(system, *(number(means.get(table)) for table in tables)) for system, means in complete.items()]
    for name in (PAPER_MODEL, "SentenceBERT"):
        rows.append(paper_row(name, *(number(paper.mean(table, name, paper.columns(table))) for table in tables)))
    answered = tuple(sorted({"4" if table == "14" else "9" for table in tables}))
    caption = "Only groups with all of their tasks measured. In italics the means of the paper's own columns."
    header = ["system", *(f"{paper.title(table)} (Table {table})" for table in tables)]
    blocks = [plain_table(caption, header, rows), Errata(paper.errata(*answered))]
    return Section(f"Averages of complete groups (Table {' and '.join(answered)})", blocks, answered)


def _mldr_section(scores: list[Score], sources: Sources) -> Section | None:
    """Table 10: exact search, and BM25's candidates ranked again."""
    groups = []
    for title, column, method in (
        ("Exact search", "exact_search", None),
        ("BM25's candidates reranked", "bm25_rerank", "rerank"),
    ):
        found = [
            score
            for score in scores
            if score.task.lower() in MLDR and (score.record.get("hybrid") or {}).get("method") == method
        ]
        rows = [_mldr_row(score, column, sources) for score in sorted(found, key=lambda score: -score.points)]
        printed = {name: paper.value("10", name, column) for name in paper.values("10")}
        if rows:
            rows += [
                paper_row(name, number(value), "", "", "")
                for name, value in sorted(printed.items(), key=lambda item: -(item[1] or 0))
                if value is not None
            ]
            groups.append(Group(title, rows))
    if not groups:
        return None
    caption = "nDCG@10 in points. Rows in italics are printed in the paper."
    header = ["system", "nDCG@10", "95 % interval", "paper", "difference"]
    return Section("MLDR (Table 10)", [Table(caption, header, groups), Errata(paper.errata("10"))], ("10",))


def _mldr_row(score: Score, column: str, sources: Sources) -> list[Cell]:
    theirs = paper.value("10", paper_name(score.record), column)
    gap = DASH if theirs is None else difference(score.points - theirs)
    printed = Cell(number(theirs), paper=True)
    return row(sources.cell(score.record), number(score.points), interval(score.bounds), printed, gap)
