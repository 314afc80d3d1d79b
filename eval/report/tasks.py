"""One retrieval task: every system's scores, what separates them, and what they cost."""

from collections import defaultdict

from ..statistics import paired_difference_interval
from . import paper
from .blocks import (
    DASH,
    Block,
    Cell,
    Group,
    Section,
    Table,
    difference,
    interval,
    number,
    paper_row,
    percent,
    points,
    row,
    seconds,
)
from .groups import GROUPS, LEXICAL, column_of, grouped, paper_name, paper_rows, paper_table
from .plots import CostPoint, cost_plot
from .sources import Sources, shorten

SCORES = ["system", "nDCG@10", "95 % interval"]
AGAINST_PAPER = ["paper", "difference"]
DETAILS = ["nDCG@1", "recall@100", "seen", "vectors", "s / document", "overlap: documents, queries"]
DETAILS_EXPLAINED = (
    "Seen: the share of the documents' tokens that reached a vector. Vectors and seconds are for one document. "
    "Overlap: documents (the same or nearly) and queries of this test that are in the model's training data."
)


def task_section(records: list[dict], sources: Sources, ambiguous: bool) -> Section:
    """Everything about one task; `records` are of the same data, so that all of them may be compared.

    Args:
        ambiguous: whether the report has other data under the same name.
    """
    first = records[0]
    title = f"{first['task']}, {first['split']}"
    if ambiguous:
        title += f", data {shorten(first['data_fingerprint'])}"
    blocks: list[Block] = [scores_table(records, sources)]
    return Section(title, [*blocks, *pairs_tables(records), *cost_plots(records)], level=3)


def scores_table(records: list[dict], sources: Sources) -> Table:
    """All systems in their groups; beside them the paper's, where the paper has this task."""
    table = paper_table(records[0])
    counts = records[0]["counts"]
    caption = (
        f"{counts['queries']:,} queries, {counts['documents']:,} documents. Scores in points, intervals over queries."
    )
    ours = grouped(records)
    theirs = paper_rows(table, [column_of(records[0])]) if table else {}
    if table:
        caption += (
            f" Rows in italics are printed in the paper (Table {table}), which gives no intervals. The difference is "
            "ours minus the paper's row of the same system, in bold where the paper's value is outside our interval."
        )
    if counts["documents"] <= 100:
        caption += " With so few documents recall@100 says nothing."
    if any(((record.get("hybrid") or {}).get("depth") or 0) >= counts["documents"] for record in records):
        caption += " Reranking as many candidates as there are documents gives the model's own ranking."
    groups = []
    for title in GROUPS.values():
        rows = [_scores_row(record, table, sources) for record in ours.get(title, [])]
        rows += [_paper_scores_row(name, table, column_of(records[0])) for name in theirs.get(title, [])]
        if rows:
            groups.append(Group(title, rows))
    header = SCORES + (AGAINST_PAPER if table else []) + DETAILS
    return Table(f"{caption} {DETAILS_EXPLAINED}", header, groups)


def _scores_row(record: dict, table: str | None, sources: Sources) -> list[Cell]:
    metrics = record.get("metrics") or {}
    means = [(metrics.get(name) or {}).get("mean") for name in ("ndcg_at_1", "recall_at_100")]
    return row(
        sources.cell(record),
        points(record["ndcg_at_10"]),
        interval(record["interval_95"]),
        *(against_paper(record, table) if table else []),
        *map(points, means),
        percent(record.get("seen_share")),
        number(record.get("vectors_per_document")),
        seconds(record.get("seconds_per_document")),
        overlap_text(record),
    )


def _paper_scores_row(name: str, table: str, column: str) -> list[Cell]:
    score = number(paper.value(table, name, column))
    return paper_row(name, score, *[""] * (len(SCORES) - 2 + len(AGAINST_PAPER) + len(DETAILS)))


def against_paper(record: dict, table: str) -> list[Cell]:
    """The paper's value of the same system, and ours minus it."""
    theirs = paper.value(table, paper_name(record), column_of(record))
    if theirs is None:
        return row(DASH, DASH)
    low, high = (100 * bound for bound in record["interval_95"])
    gap = difference(100 * record["ndcg_at_10"] - theirs)
    return [Cell(number(theirs), paper=True), Cell(gap, strong=not low <= theirs <= high)]


def overlap_text(record: dict) -> str:
    """What a trained model has seen of the test, or that nobody looked."""
    if record["claim"] == "untrained":
        return DASH
    overlaps = record.get("overlap") or []
    if not overlaps:
        return "not checked"
    return "; ".join(overlap_counts(overlap) for overlap in overlaps)


def overlap_counts(overlap: dict) -> str:
    """Documents and queries of a test that are also in a training split."""
    documents, queries = overlap["documents"], overlap["queries"]
    shared = documents["same"] + documents["near"]
    return f"{shared:,}/{documents['count']:,}, {queries['same']:,}/{queries['count']:,}"


def pairs_tables(records: list[dict]) -> list[Block]:
    """Every system against the best lexical one and the best of its group, query by query; none without a pair."""
    groups = grouped(records)
    baseline = next(iter(groups.get(LEXICAL, [])), None)
    if len(records) == 1 or (baseline is None and len(groups) == len(records)):
        return []
    header = ["system", "minus the best of its group", "95 % interval"]
    if baseline:
        header[1:1] = [f"minus {baseline['system']}", "95 % interval"]
    rows = []
    for title, members in groups.items():
        others = [baseline, members[0]] if baseline else [members[0]]
        pairs = [[cell for other in others for cell in paired(record, other)] for record in members]
        named = zip(members, pairs, strict=True)
        rows.append(Group(title, [row(record["system"], *cells) for record, cells in named]))
    caption = (
        "Differences in nDCG@10 on the same queries, in points: paired bootstrap, bold where the interval excludes "
        "zero. The best were chosen on these very queries and the intervals are not corrected for their number, so a "
        "narrow win is no more than a hint."
    )
    return [Table(caption, header, rows)]


def paired(record: dict, other: dict) -> list[Cell]:
    """Difference of two systems and its interval; dashes for a system and itself, or where the queries differ."""
    if record is other or record["query_scores"].keys() != other["query_scores"].keys():
        return row(DASH, DASH)
    mean, low, high = paired_difference_interval(record["query_scores"], other["query_scores"])
    excludes_zero = low > 0 or high < 0
    return [Cell(difference(100 * mean), strong=excludes_zero), Cell(interval((low, high)))]


def cost_plots(records: list[dict]) -> list[Block]:
    """Quality over the time that a document takes: one plot for each device, since times on two never compare."""
    timed = defaultdict(list)
    for title, members in grouped(records).items():
        for record in members:
            if record.get("seconds_per_document"):
                point = CostPoint(record["system"], record["seconds_per_document"], 100 * record["ndcg_at_10"], title)
                timed[record.get("device") or "device not stated"].append(point)
    untimed = [record for record in records if not record.get("seconds_per_document")]
    lexical = grouped(untimed).get(LEXICAL)
    level = (lexical[0]["system"], 100 * lexical[0]["ndcg_at_10"]) if lexical else None
    name = "-".join(["cost", *(shorten(records[0][field]) for field in ("task", "split", "data_fingerprint"))])
    return [cost_plot(f"{name}-{device}", found, device, level) for device, found in timed.items() if len(found) > 1]
