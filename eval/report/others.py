"""The paper's other tables: BEIR (4, 14), MTEB (9, 18 to 22), MLDR (10), needle (17, Figure 2), lengths (11, 13, 16),
answer spans (12), efficiency (5), clusters (Figure 3)."""

from collections import defaultdict
from statistics import mean
from typing import NamedTuple

from . import tables as md
from .plots import cluster_plot, efficiency_plot, length_plot, needle_plot
from .retrieval import column_of
from .tables import DASH, Section, Sources

TASK_TABLES = ("14", "18", "19", "20", "21", "22")
PAPER_MODEL, OTHER_MODEL = "M2-BERT-128", "SentenceBERT"  # of Tables 14 and 18 to 22
MLDR = {"mldr", "mldr-en", "multilongdocretrieval"}
MLDR_METHODS = {  # column of Table 10: title, and the method of the records that belong to it
    "exact_search": ("Exact search", None),
    "bm25_rerank": ("BM25's candidates reranked", "rerank"),
}
DEVELOPMENT = {"MSMARCO"}  # benchmarks report its development split; see the paper's errata
NEEDLE_MODEL = "M2-BERT-32k"  # the curve of Figure 2 that reaches furthest
PAPER_PASSAGES = 40  # of a haystack; others are not compared with the paper's


class Score(NamedTuple):
    """One number of one system on one task, in points, from a record of either kind."""

    record: dict
    task: str
    points: float
    metric: str


def scores_of(retrieval: list[dict], mteb: list[dict]) -> list[Score]:
    """Return scores on the splits that benchmarks report, without tasks that had documents added.

    Of a task of mteb it is the score by the paper's measure if the record holds it, else the task's main score.
    """
    plain = [record for record in retrieval if not record.get("distractors")]
    found = [Score(record, column_of(record), 100 * record["ndcg_at_10"], "ndcg_at_10") for record in plain]
    for record in mteb:
        name = _table_of(record["task"])
        metric = name and md.paper_table(name).get("metric")
        value = (record.get("other_scores") or {}).get(metric)
        if value is None:
            metric, value = record["metric"], record["value"]
        found.append(Score(record, record["task"], 100 * value, metric))
    splits = ("test", "dev")
    return [one for one in found if one.record["split"] in splits[: 1 + (one.task in DEVELOPMENT)]]


def benchmark_sections(retrieval: list[dict], mteb: list[dict], sources: Sources) -> list[Section]:
    """Return a section for each of the paper's tables that has a score, and one for complete groups."""
    scores, by_table = scores_of(retrieval, mteb), {}
    for name in TASK_TABLES:
        columns, systems = md.paper_columns(name), defaultdict(dict)  # {system: {task: score}}, in the paper's order
        chosen = (one for one in scores if one.task in columns)
        for one in sorted(chosen, key=lambda one: (columns.index(one.task), one.record["split"] == "test")):
            systems[one.record["system"]][one.task] = one  # the split test is preferred
        if systems:
            by_table[name] = systems
    sections = [_table_section(name, systems, sources) for name, systems in by_table.items()]
    return [*sections, *_averages_section(by_table), *_mldr_section(scores, sources)]


def other_section(mteb: list[dict], sources: Sources) -> Section | None:
    """Return tasks of mteb, or splits of them, that are in none of the paper's tables."""
    known = [id(one.record) for one in scores_of([], mteb) if _table_of(one.task) or one.task.lower() in MLDR]
    rest = [record for record in mteb if id(record) not in known]
    rows = [
        [f"{one['task']}, {one['split']}", sources.system(one), one["metric"], md.number(100 * one["value"])]
        for one in sorted(rest, key=lambda one: (one["task"], one["split"], -one["value"]))
    ]
    found = md.table("Main scores, x 100.", ["task", "system", "metric", "points"], rows, words=3)
    return Section("Other tasks of mteb", [found]) if rows else None


def _table_of(task: str) -> str | None:
    return next((name for name in TASK_TABLES if task in md.paper_columns(name)), None)


def _table_section(name: str, systems: dict[str, dict[str, Score]], sources: Sources) -> Section:
    """Return Table 14 or one of 18 to 22: each system's tasks and their average."""

    def against(row: str, tasks: list[str], ours: float, bounds: str) -> list[str]:
        model, other = (md.printed(md.number(md.paper_mean(name, of, tasks))) for of in (PAPER_MODEL, OTHER_MODEL))
        return [md.number(ours), bounds, model, md.difference(ours, md.paper_mean(name, row, tasks)), other]

    rows = []
    for system, found in systems.items():
        rows.append([md.bold(system)])
        named = [md.row_of(one.record) for one in found.values()]
        paper_rows = [row if row in md.paper_values(name) else PAPER_MODEL for row in named]
        for (task, one), row in zip(found.items(), paper_rows, strict=True):
            split = one.record["split"]
            link = sources.link(task if split == "test" else f"{task}, {split}", one.record)
            bounds = md.interval(one.record.get("interval_95"))
            rows.append([link, one.metric, *against(row, [task], one.points, bounds)])
        average = f"average over {len(found)} of {len(md.paper_columns(name))} tasks"
        rows.append([average, "", *against(paper_rows[0], list(found), mean(one.points for one in found.values()), "")])
    about = md.paper_table(name)
    caption = (
        f"Points; in italics what the paper prints ({about['measure']}). The difference is ours minus {PAPER_MODEL}, "
        "or the paper's row of the same system. mteb gives no intervals; metrics have mteb's names. Averages are over "
        "the tasks measured here, the paper's too."
    )
    header = ["task", "metric", "ours", "95 % interval", PAPER_MODEL, "difference", OTHER_MODEL]
    blocks = [md.table(caption, header, rows, words=2), *md.errata(name)]
    return Section(f"{about['title']} (Table {name})", blocks, (name,))


def _averages_section(by_table: dict[str, dict[str, dict[str, Score]]]) -> list[Section]:
    """Return Tables 4 and 9, averages of the groups of which a system has every task, or nothing."""
    complete = defaultdict(dict)
    for name, systems in by_table.items():
        for system, found in systems.items():
            if len(found) == len(md.paper_columns(name)):
                complete[system][name] = mean(one.points for one in found.values())
    names = [name for name in TASK_TABLES if any(name in means for means in complete.values())]
    if not names:
        return []
    rows = [[system, *(md.number(means.get(name)) for name in names)] for system, means in complete.items()]
    for model in (PAPER_MODEL, OTHER_MODEL):
        means = [md.paper_mean(name, model, md.paper_columns(name)) for name in names]
        rows.append(md.paper_row(model, *map(md.number, means)))
    answered = tuple(sorted({"4" if name == "14" else "9" for name in names}))
    caption = "Only groups with all of their tasks measured. In italics the means of the paper's own columns."
    header = ["system", *(f"{md.paper_table(name)['title']} (Table {name})" for name in names)]
    title = f"Averages of complete groups (Table {' and '.join(answered)})"
    return [Section(title, [md.table(caption, header, rows), *md.errata(*answered)], answered)]


def _mldr_section(scores: list[Score], sources: Sources) -> list[Section]:
    """Return Table 10, exact search and BM25's candidates ranked again, or nothing."""
    rows = []
    scores = sorted((one for one in scores if one.task.lower() in MLDR), key=lambda one: -one.points)
    for column, (title, method) in MLDR_METHODS.items():
        found = [one for one in scores if (one.record.get("hybrid") or {}).get("method") == method]
        if not found:
            continue
        rows.append([md.bold(title)])
        for record, _, ours, _ in found:
            theirs = md.paper_value("10", md.row_of(record), column)
            cells = [md.number(ours), md.interval(record.get("interval_95")), md.printed(md.number(theirs))]
            rows.append([sources.system(record), *cells, md.difference(ours, theirs)])
        for name in md.paper_ranked("10", [column]):
            rows.append(md.paper_row(name, md.number(md.paper_value("10", name, column))))
    caption = "nDCG@10 in points. Rows in italics are printed in the paper."
    header = ["system", "nDCG@10", "95 % interval", "paper", "difference"]
    blocks = [md.table(caption, header, rows), *md.errata("10")]
    return [Section("MLDR (Table 10)", blocks, ("10",))] if rows else []


def needle_section(records: list[dict], sources: Sources) -> Section | None:
    """Return Table 17 and Figure 2: a plot and two tables for each haystack, the scores by place folded."""
    haystacks = defaultdict(list)
    for record in records:
        parts = [f"{record['passages']} passages a document", f"{record['queries']:,} queries"]
        parts += [f"seed {record['seed']}"] if record.get("seed") is not None else []
        haystacks[f"{md.data_of(record)}: {', '.join(parts)}"].append(record)
    blocks, folded = [], []
    for title, members in haystacks.items():
        theirs = md.paper_values("17") if members[0]["passages"] == PAPER_PASSAGES else {}
        scores = [{str(entry["position"]): entry for entry in record["rows"]} for record in members]
        rows = []
        for record, found in zip(members, scores, strict=True):
            ours = 100 * mean(entry["ndcg_at_10"] for entry in record["rows"])
            gap = md.difference(ours, md.paper_mean("17", md.row_of(record), list(found)) if theirs else None)
            places = f"{len(record['rows'])} of {record['passages']}"
            rows.append([sources.system(record), places, md.percent(record.get("seen_share")), md.number(ours), gap])
        caption = f"{title}. nDCG@10 in points, averaged over the places measured. Seen: share of the documents."
        if theirs:
            places = list(scores[0])
            for name in theirs:
                printed = md.number(md.paper_mean("17", name, places))
                rows.append(md.paper_row(name, f"{len(places)} of {PAPER_PASSAGES}", "", printed))
            caption += (
                " In italics the paper's models over the same places; its passages are from Natural Questions, so its "
                "numbers are a reference for the shape and no target."
            )
        header = ["system", "places", "seen", "average", "difference from the paper's row"]
        blocks += [needle_plot(title, members, theirs.get(NEEDLE_MODEL, {})), md.table(caption, header, rows)]
        rows = []
        for place in sorted({place for found in scores for place in found}, key=int):
            printed = [md.printed(md.number(curve.get(place))) for curve in theirs.values()]
            rows.append([place, *(md.score(found.get(place)) for found in scores), *printed])
        header = ["place", *(record["system"] for record in members), *theirs]
        folded.append(md.table(f"By place (0: the answer comes first): {title}", header, rows, folded=True))
    return Section("Needle in a haystack (Table 17, Figure 2)", [*blocks, *folded], ("17",)) if blocks else None


def lengths_section(records: list[dict]) -> Section | None:
    """Return Table 11 with Figures 5 and 6: counts and lengths beside the paper's."""
    rows = []
    for record in records:
        queries, documents, split = record["queries"], record["documents"], record["split"]
        ours = [queries["count"], documents["count"], queries["mean_chars"], documents["mean_chars"]]
        names = (f"{split}_queries", f"{split}_documents", "avg_query_chars", "avg_document_chars")
        theirs = [md.paper_value("11", record["task"], name) for name in names]
        if None in theirs[:2]:  # not a split that the paper counts
            theirs = [None] * 4
        pairs = zip(ours, theirs, strict=True)
        beside = [cell for mine, paper in pairs for cell in (md.number(mine, 0), md.printed(md.number(paper, 0)))]
        tokens = [md.number(documents[key], 0) for key in ("mean_tokens", "median_tokens", "max_tokens")]
        rows.append([md.data_of(record), *beside, *tokens, record["tokenizer"].rpartition("/")[2]])
    names = ("queries", "documents", "characters a query", "characters a document")
    header = ["data", *(text for name in names for text in (name, "paper"))]
    header += ["tokens a document", "median", "longest", "tokenizer"]
    caption = "Counts and mean lengths, in italics the paper's for the same split. Tokens by the tokenizer named last."
    blocks = [md.table(caption, header, rows), length_plot(records)] if rows else []
    return Section("Lengths (Table 11, Figures 5 and 6)", blocks, ("11",)) if rows else None


def texts_section(records: list[dict]) -> Section | None:
    """Return Tables 13 and 16: how a query and its document begin."""
    rows = [[md.data_of(record), record["example"]["query"], record["example"]["passage"]] for record in records]
    header = ["data", "query", "its document begins"]
    found = md.table("The first query of each task.", header, rows, words=3, folded=True)
    return Section("Examples of queries and documents (Tables 13 and 16)", [found], ("13", "16")) if rows else None


def spans_section(records: list[dict]) -> Section | None:
    """Return Table 12: where answers begin."""
    rows = []
    for record in records:
        positions, total = record["positions"], sum(record["quarters"]) or 1
        numbers = [positions["count"], *positions["quartiles"], positions["mean_document_chars"]]
        shares = [md.percent(count / total) for count in record["quarters"]]
        rows.append([md.data_of(record), *(md.number(value, 0) for value in numbers), *shares])
    for task, theirs in md.paper_values("12").items():
        rows.append(md.paper_row(task, "", *(md.number(value, 0) for value in theirs.values())))
    header = ["data", "answers", "1st quartile", "2nd quartile", "3rd quartile", "characters a document"]
    header += [f"in quarter {index}" for index in range(1, 5)]
    caption = (
        "Where answers begin: quartiles in characters from the document's start, and the share of answers that begin "
        "in each quarter of their document. Rows in italics are printed in the paper."
    )
    blocks = [md.table(caption, header, rows), *md.errata("12")]
    return Section("Where answers begin (Table 12)", blocks, ("12",)) if records else None


def efficiency_section(records: list[dict], sources: Sources) -> Section | None:
    """Return Table 5: seconds to encode texts of given lengths, one plot and table for each machine."""
    machines = defaultdict(list)
    for record in records:
        count = record.get("threads")
        threads = f"{count} thread{'s' * (count > 1)}" if count else None
        machines[", ".join(filter(None, [record["device"], record.get("dtype"), threads]))].append(record)
    blocks = []
    for machine, members in machines.items():
        lengths = sorted({entry["tokens"] for record in members for entry in record["rows"]})
        rows = []
        for record in members:
            cells = dict.fromkeys(lengths, DASH)
            for entry in record["rows"]:
                text = f"{md.seconds(entry['encode_seconds'])} + {md.seconds(entry.get('tokenize_seconds'))}"
                if entry.get("total_seconds") is not None:
                    text += f" of {md.seconds(entry['total_seconds'])}"
                if entry.get("seen_share") not in (None, 1):
                    text += f" ({md.percent(entry['seen_share'])} seen)"
                cells[entry["tokens"]] = text
            rows.append([sources.system(record), *cells.values()])
        caption = (
            f"Seconds for one text on {machine}, medians: in the model + in the tokenizer, of the whole call, which "
            "also cuts, batches and copies. In brackets the share of the text that was read, where it is not all."
        )
        header = ["system", *(f"{length:,} tokens" for length in lengths)]
        blocks += [efficiency_plot(machine, members), md.table(caption, header, rows)]
    measure = md.paper_table("5")["measure"]
    caption = f"Printed in the paper: {measure}, another machine than ours, so there are no differences."
    blocks += [md.printed_table(caption, "5", md.seconds, lambda length: f"{int(length):,} tokens"), *md.errata("5")]
    return Section("Efficiency (Table 5)", blocks, ("5",)) if records else None


def clusters_section(records: list[dict], sources: Sources) -> Section | None:
    """Return Figure 3: a map of each system's vectors, with a number beside the pictures."""
    rows = []
    for record in records:
        found, texts = record["knn"], md.number(sum(record["sources"].values()), 0)
        shares = map(md.percent, (found["accuracy"], found["chance"]))
        rows.append([sources.system(record), texts, str(found["k"]), *shares])
    caption = (
        "Texts whose source their nearest neighbors name, each text left out of its own vote, in the full space of "
        "the vectors. The maps below only illustrate it: t-SNE keeps neighborhoods, not distances."
    )
    found = md.table(caption, ["system", "texts", "neighbors", "named rightly", "by chance"], rows)
    return Section("Clusters (Figure 3)", [found, *map(cluster_plot, records)]) if rows else None
