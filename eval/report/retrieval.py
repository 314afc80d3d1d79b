"""Retrieval scores: the paper's two benchmarks at a glance, each task with every system, and scores in detail."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable

from ..statistics import paired_difference_interval
from . import tables as md
from .plots import CostPoint, cost_plot
from .tables import DASH, Markdown, Plot, Section, Sources

Tasks = dict[tuple[str, str, str], list[dict]]  # {(task, split, fingerprint): records}, see `statistics.by_task`

# How a system represents a document, what it was trained on, and the title of its group, in the order of a report.
GROUPS = {
    ("lexical", "untrained"): "Lexical",
    ("one", "zero-shot"): "One vector a document, zero-shot",
    ("one", "fine-tuned"): "One vector a document, fine-tuned on the task",
    ("several", "zero-shot"): "Several vectors a document, zero-shot",
    ("several", "fine-tuned"): "Several vectors a document, fine-tuned on the task",
    ("hybrid", "zero-shot"): "Hybrid with BM25, zero-shot",
    ("hybrid", "fine-tuned"): "Hybrid with BM25, fine-tuned on the task",
    ("hybrid", "not stated"): "Hybrid with BM25, training not stated",
    ("one", "not stated"): "One vector a document, training not stated",
    ("several", "not stated"): "Several vectors a document, training not stated",
    ("not stated", "not stated"): "Run files",
}
LEXICAL = GROUPS["lexical", "untrained"]
BENCHMARKS = {"15": ("LoCoV1", ("3", "15")), "23": ("LoCoV0", ("23",))}  # name, and the tables its scores belong to


def group_of(system: dict) -> str:
    """Return the title of the group of a retrieval record or of a model of the paper."""
    kind = system["vectors"] if system["vectors"] in ("one", "not stated") else "several"
    kind = "hybrid" if system.get("hybrid") else kind
    kind = "lexical" if system["claim"] == "untrained" else kind
    return GROUPS.get((kind, system["claim"])) or GROUPS[kind, "not stated"]


def grouped(records: list[dict]) -> dict[str, list[dict]]:
    """Return records by the title of their group, in the order of GROUPS, the best of each group first."""
    groups = defaultdict(list)
    for record in sorted(records, key=lambda record: (-record["ndcg_at_10"], record["system"])):
        groups[group_of(record)].append(record)
    return {title: groups[title] for title in GROUPS.values() if title in groups}


def grouped_rows(records: list[dict], row: Callable[[dict], list[str]], theirs: dict[str, list[str]]) -> list:
    """Return rows of a table, group by group below the group's title: of records, made by `row`, the best first, then
    the paper's, from {model: its numbers}, the best first."""
    ours, printed_rows = grouped(records), defaultdict(list)
    for name, numbers in theirs.items():
        printed_rows[group_of(md.read_paper()["models"][name])].append(md.paper_row(name, *numbers))
    rows = []
    for title in GROUPS.values():
        if title in ours or title in printed_rows:
            rows += [[md.bold(title)], *map(row, ours.get(title, [])), *printed_rows[title]]
    return rows


def paper_table_of(record: dict) -> str | None:
    """Return the table of the paper that scores this very task: "15" (LoCoV1), "23" (LoCoV0), or None."""
    from ..tasks.from_hub import LOCOV0_REVISION  # slow to import

    if record["split"] != "test" or record.get("distractors"):
        return None
    commits, read = LOCOV0_REVISION.split(","), (record.get("revision") or "").split(",")
    found = "23" if len(commits) == len(read) and all(map(str.startswith, read, commits)) else "15"
    return found if column_of(record) in md.paper_columns(found) else None


def column_of(record: dict) -> str:
    """Return the record's task as the paper's tables name it, without the collection before it."""
    return record["task"].rpartition("/")[2]


def task_sections(tasks: Tasks, sources: Sources) -> list[Section]:
    """Return the two benchmarks of the paper with their tasks, then all other tasks."""
    names = Counter(key[:2] for key in tasks)
    by_table = defaultdict(list)
    for key in sorted(tasks):
        by_table[paper_table_of(tasks[key][0])].append(key)
    sections = []
    for found in (*BENCHMARKS, None):
        keys = by_table[found]
        if found and keys:
            keys.sort(key=lambda key: md.paper_columns(found).index(column_of(tasks[key][0])))
            (name, tables), total = BENCHMARKS[found], len(md.paper_columns(found))
            overview = f"1 of {total} tasks was measured here, so there is no average."
            if len(keys) > 1:
                overview = overview_table(found, {key: tasks[key] for key in keys})
            title = f"{name} (Table{'s' * (len(tables) > 1)} {' and '.join(tables)})"
            sections.append(Section(title, [overview, *md.errata(*tables)], tables))
        elif keys:
            sections.append(Section("Other retrieval tasks", ["Tasks that the paper's main tables do not have."]))
        for task, split, fingerprint in keys:
            title = f"{task}, {split}"
            if names[task, split] > 1:
                title += f", data {md.shorten(fingerprint)}"
            records = tasks[task, split, fingerprint]
            blocks = [scores_table(records, sources), *pairs_table(records), *cost_plots(records)]
            sections.append(Section(title, blocks, level=3))
    return sections


def overview_table(paper_table: str, tasks: Tasks) -> Markdown:
    """Return systems by tasks, with averages over the tasks that all systems share.

    A task that stands here in two versions has a column for each and is in no average.
    """
    names = {key: column_of(records[0]) for key, records in tasks.items()}
    doubled = {name for name, count in Counter(names.values()).items() if count > 1}
    systems: dict[str, dict[tuple, dict]] = {}
    for key, records in tasks.items():
        for record in records:
            systems.setdefault(record["system"], {})[key] = record
    shared = [key for key in tasks if names[key] not in doubled and all(key in found for found in systems.values())]
    total = len(md.paper_columns(paper_table))

    def row(summary: dict) -> list[str]:
        found = systems[summary["system"]]
        cells = [md.points(found[key]["ndcg_at_10"] if key in found else None) for key in tasks]
        return [summary["system"], *cells, *[md.points(summary["ndcg_at_10"])] * (len(shared) > 1)]

    header = ["system", *(f"{name} ({md.shorten(key[2])})" if name in doubled else name for key, name in names.items())]
    caption = (
        f"nDCG@10 in points; intervals and differences are with each task below. Rows in italics are printed in the "
        f"paper (Table {paper_table}). Fine-tuned are systems that were so on any of these tasks."
    )
    if len(shared) > 1:
        header.append(f"average over {len(shared)} of {total} tasks")
        caption += (
            f" Averages are over the {len(shared)} of {total} tasks that every system here was measured on; the "
            "paper's rows are averaged over the same tasks, from its columns."
        )
    if 1 < len(shared) < total:
        caption += " They are not the averages that the paper prints."
    summaries, theirs = [], {}
    for system, found in systems.items():  # fine-tuned if any of its scores is of a model fine-tuned on the task
        counted = [found[key] for key in shared] or list(found.values())
        claims = {record["claim"] for record in found.values()}
        claim = next((claim for claim in ("fine-tuned", "not stated") if claim in claims), min(claims))
        mean = sum(record["ndcg_at_10"] for record in counted) / len(counted)
        summaries.append({**next(iter(found.values())), "system": system, "ndcg_at_10": mean, "claim": claim})
    for model in md.paper_ranked(paper_table, list(dict.fromkeys(names.values()))):
        theirs[model] = [md.number(md.paper_value(paper_table, model, name)) for name in names.values()]
        theirs[model] += [md.number(md.paper_mean(paper_table, model, [names[k] for k in shared]))] * (len(shared) > 1)
    return md.table(caption, header, grouped_rows(summaries, row, theirs))


def scores_table(records: list[dict], sources: Sources) -> Markdown:
    """Return all systems on a task in their groups, beside the paper's where the paper has this task."""
    found, column, counts = paper_table_of(records[0]), column_of(records[0]), records[0]["counts"]
    documents = counts["documents"] or math.inf  # not known of run files
    pool = "" if documents == math.inf else f", {documents:,} documents"
    caption = f"{counts['queries']:,} queries{pool}. Scores in points, intervals over queries."
    if found:
        caption += (
            f" Rows in italics are printed in the paper (Table {found}), which gives no intervals. The difference is "
            "ours minus the paper's row of the same system, in bold where the paper's value is outside our interval."
        )
    if documents <= 100:
        caption += " With so few documents recall@100 says nothing."
    if any(((record.get("hybrid") or {}).get("depth") or 0) >= documents for record in records):
        caption += " Reranking as many candidates as there are documents gives the model's own ranking."
    caption += (
        " Seen: the share of the documents' tokens that reached a vector. Vectors and seconds are for one document. "
        "Overlap: documents (the same or nearly) and queries of this test that are in the model's training data."
    )
    details = ["nDCG@1", "recall@100", "seen", "vectors", "s / document", "overlap: documents, queries"]
    header = ["system", "nDCG@10", "95 % interval", *["paper", "difference"] * bool(found), *details]

    def row(record: dict) -> list[str]:
        metrics, against, shared = record.get("metrics") or {}, [], []
        if found:
            theirs, (low, high) = md.paper_value(found, md.row_of(record), column), record["interval_95"]
            gap = md.difference(100 * record["ndcg_at_10"], theirs)
            within = theirs is None or 100 * low <= theirs <= 100 * high
            against = [DASH if theirs is None else md.printed(md.number(theirs)), gap if within else md.bold(gap)]
        for overlap in record.get("overlap") or []:
            documents, queries = overlap["documents"], overlap["queries"]
            both = documents["same"] + documents["near"]
            shared.append(f"{both:,}/{documents['count']:,}, {queries['same']:,}/{queries['count']:,}")
        scores = [md.points(record["ndcg_at_10"]), md.interval(record["interval_95"]), *against]
        scores += [md.points((metrics.get(name) or {}).get("mean")) for name in ("ndcg_at_1", "recall_at_100")]
        cost = [md.number(record.get("vectors_per_document")), md.seconds(record.get("seconds_per_document"))]
        overlaps = DASH if record["claim"] == "untrained" else "; ".join(shared) or "not checked"
        return [sources.system(record), *scores, md.percent(record.get("seen_share")), *cost, overlaps]

    models = md.paper_ranked(found, [column]) if found else []
    theirs = {model: [md.number(md.paper_value(found, model, column))] for model in models}
    return md.table(caption, header, grouped_rows(records, row, theirs))


def pairs_table(records: list[dict]) -> list[Markdown]:
    """Compare every system with the best lexical one and the best of its group; return no table without a pair."""
    groups = grouped(records)
    baseline = next(iter(groups.get(LEXICAL, [])), None)
    if len(records) == 1 or (baseline is None and len(groups) == len(records)):
        return []

    def row(record: dict) -> list[str]:
        cells = [record["system"]]
        for other in [*([baseline] if baseline else []), groups[group_of(record)][0]]:
            if record is other or record["query_scores"].keys() != other["query_scores"].keys():
                cells += [DASH, DASH]
                continue
            mean, low, high = paired_difference_interval(record["query_scores"], other["query_scores"])
            gap = md.difference(100 * mean, 0)
            cells += [md.bold(gap) if low > 0 or high < 0 else gap, md.interval((low, high))]
        return cells

    header = ["system", *([f"minus {baseline['system']}", "95 % interval"] if baseline else [])]
    header += ["minus the best of its group", "95 % interval"]
    caption = (
        "Differences in nDCG@10 on the same queries, in points: paired bootstrap, bold where the interval excludes "
        "zero. The best were chosen on these very queries and the intervals are not corrected for their number, so a "
        "narrow win is no more than a hint."
    )
    return [md.table(caption, header, grouped_rows(records, row, {}))]


def cost_plots(records: list[dict]) -> list[Plot]:
    """Plot quality over the time that a document takes, once for each device."""
    timed, level = defaultdict(list), None
    for title, members in grouped(records).items():
        for record in members:
            system, cost, score = record["system"], record.get("seconds_per_document"), 100 * record["ndcg_at_10"]
            if cost:
                timed[record.get("device") or "device not stated"].append(CostPoint(system, cost, score, title))
            elif title == LEXICAL:
                level = level or (system, score)
    name = "-".join(["cost", *(md.shorten(records[0][field]) for field in ("task", "split", "data_fingerprint"))])
    return [cost_plot(f"{name}-{device}", found, device, level) for device, found in timed.items() if len(found) > 1]


def length_section(tasks: Tasks, sources: Sources) -> Section | None:
    """Return Table 24: nDCG@10 by the length of the answer's document."""
    blocks = []
    for (task, split, fingerprint), records in tasks.items():
        by_tokenizer = defaultdict(list)
        for record in records:
            if known := record.get("by_length"):
                by_tokenizer[known["tokenizer"]].append((record, {row["bucket"]: row for row in known["rows"]}))
        for tokenizer, found in by_tokenizer.items():
            data = f"{task}, {split}, data {md.shorten(fingerprint)}"
            blocks.append(_table_by(f"{data}: answer documents counted in tokens of {tokenizer}", found, sources))
    caption = (
        "Printed in the paper, over all twelve tasks of LoCoV1 together, without the number of queries. Not to be "
        "subtracted from the tables above, which are of single tasks."
    )
    theirs = md.printed_table(caption, "24", md.number)
    return Section("By length of the answer's document (Table 24)", [*blocks, theirs], ("24",)) if blocks else None


def place_section(tasks: Tasks, sources: Sources) -> Section | None:
    """Return nDCG@10 by the quarter of the document in which the answer begins."""
    blocks = []
    for (task, split, fingerprint), records in tasks.items():
        known = [record for record in records if record.get("by_quarter")]
        found = [(record, {f"quarter {row['quarter']}": row for row in record["by_quarter"]}) for record in known]
        if found:
            blocks.append(_table_by(f"{task}, {split}, data {md.shorten(fingerprint)}", found, sources))
    return Section("By place of the answer in its document", blocks) if blocks else None


def _table_by(caption: str, found: list[tuple[dict, dict[str, dict]]], sources: Sources) -> Markdown:
    """Return records by groups of queries; each record comes with its scores by the name of the group."""
    scores = {id(record): by_name for record, by_name in found}
    names = {name: entry["queries"] for _, by_name in reversed(found) for name, entry in by_name.items()}
    header = ["system", *(f"{name} ({count:,} queries)" for name, count in names.items())]

    def row(record: dict) -> list[str]:
        return [sources.system(record), *(md.score(scores[id(record)].get(name)) for name in names)]

    caption = f"{caption}. nDCG@10 in points with 95 % intervals."
    return md.table(caption, header, grouped_rows([record for record, _ in found], row, {}))


def examples_section(tasks: Tasks) -> Section | None:
    """Return Table 25: the best and the worst queries of the best system of each group, folded."""
    header = ["query", "its answer begins", "rank", "ranked first instead, begins"]
    blocks = []
    for (task, split, _), records in tasks.items():
        for best, *_ in grouped(records).values():
            rows = []
            for title, key in (("Found", "successes"), ("Missed or found late", "failures")):
                rows += [[md.bold(title)]] * bool(best.get(key))
                for example in best.get(key) or []:
                    rank = example.get("rank")
                    instead = DASH if rank == 1 else example.get("found_start") or DASH
                    rows.append([example["query"], example["answer_start"], str(rank or "not found"), instead])
            if rows:
                caption = f"{task}, {split}: {best['system']}"
                blocks.append(md.table(caption, header, rows, words=len(header), folded=True))
    said = "Of each group's best system; those of the others are in the result files."
    return Section("Successes and failures (Table 25)", [said, *blocks], ("25",)) if blocks else None


def overlap_section(overlaps: list[dict], records: list[dict]) -> Section | None:
    """Return what tests share with training data: from records of their own, and from those of trained models."""
    found = list(overlaps)
    for record in records:
        found += [overlap for overlap in record.get("overlap") or [] if overlap not in found]
    rows = []
    for overlap in found:
        documents, queries = overlap["documents"], overlap["queries"]
        numbers = [documents["count"], documents["same"], documents["near"], queries["count"], queries["same"]]
        names = [f"{side['task']}, {side['split']}" for side in (overlap["test"], overlap["train"])]
        rows.append([*names, *(md.number(n, 0) for n in [*numbers, queries.get("in_documents")])])
    caption = (
        "Same: equal but for case and spaces. Near: at least half of a document's sampled sequences of 13 words occur "
        "in the training documents. In a document: queries that stand word for word in a training document."
    )
    header = ["test", "training data", "test documents", "same", "near", "test queries", "same", "in a document"]
    return Section("Contamination", [md.table(caption, header, rows, words=2)]) if rows else None
