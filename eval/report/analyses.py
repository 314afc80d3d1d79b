"""The paper's analyses: needle (17), lengths (11, 13, 16), answer spans (12), efficiency (5), clusters (Figure 3)."""

from collections import defaultdict

from . import paper
from .plots import cluster_plot, efficiency_plot, length_plot, needle_plot
from .tables import (
    DASH,
    Markdown,
    Section,
    Sources,
    data_of,
    difference,
    errata,
    number,
    paper_row,
    percent,
    printed,
    printed_table,
    score,
    seconds,
    table,
)

NEEDLE_MODEL = "M2-BERT-32k"  # the curve of Figure 2 that reaches furthest
PAPER_PASSAGES = 40  # of a haystack; others are not compared with the paper's


def needle_section(records: list[dict], sources: Sources) -> Section | None:
    """Return Table 17 and Figure 2: a plot and two tables for each haystack, the scores by place folded."""
    haystacks = defaultdict(list)
    for record in records:
        parts = [f"{record['passages']} passages a document", f"{record['queries']:,} queries"]
        parts += [f"seed {record['seed']}"] if record.get("seed") is not None else []
        haystacks[f"{data_of(record)}: {', '.join(parts)}"].append(record)
    blocks, folded = [], []
    for title, members in haystacks.items():
        theirs = paper.values("17") if members[0]["passages"] == PAPER_PASSAGES else {}
        blocks.append(needle_plot(title, members, theirs.get(NEEDLE_MODEL, {})))
        blocks.append(_needle_averages(title, members, theirs, sources))
        scores = [{entry["position"]: entry for entry in record["rows"]} for record in members]
        rows = [
            [
                str(place),
                *(score(found.get(place)) for found in scores),
                *(printed(number(curve.get(str(place)))) for curve in theirs.values()),
            ]
            for place in sorted({place for found in scores for place in found})
        ]
        header = ["place", *(record["system"] for record in members), *theirs]
        folded.append(table(f"By place (0: the answer comes first): {title}", header, rows, folded=True))
    return Section("Needle in a haystack (Table 17, Figure 2)", [*blocks, *folded], ("17",)) if blocks else None


def _needle_averages(title: str, records: list[dict], theirs: dict, sources: Sources) -> Markdown:
    """Return means over the places measured, beside the paper's over the same places."""
    rows = []
    for record in records:
        places = [str(entry["position"]) for entry in record["rows"]]
        ours = 100 * (sum(entry["ndcg_at_10"] for entry in record["rows"]) / len(places))
        mean = paper.mean("17", paper.row_of(record), places) if theirs else None
        gap = DASH if mean is None else difference(ours - mean)
        measured = f"{len(places)} of {record['passages']}"
        rows.append([sources.system(record), measured, percent(record.get("seen_share")), number(ours), gap])
    caption = f"{title}. nDCG@10 in points, averaged over the places measured. Seen: share of the documents."
    if theirs:
        places = [str(entry["position"]) for entry in records[0]["rows"]]
        for name in theirs:
            rows.append(paper_row(name, f"{len(places)} of 40", "", number(paper.mean("17", name, places))))
        caption += (
            " In italics the paper's models over the same places; its passages are from Natural Questions, so its "
            "numbers are a reference for the shape and no target."
        )
    return table(caption, ["system", "places", "seen", "average", "difference from the paper's row"], rows)


def lengths_section(records: list[dict]) -> Section | None:
    """Return Table 11 with Figures 5 and 6: counts and lengths beside the paper's."""
    if not records:
        return None
    rows = []
    for record in records:
        queries, documents = record["queries"], record["documents"]
        theirs = paper.values("11").get(record["task"], {})
        pairs = [
            (queries["count"], theirs.get(f"{record['split']}_queries")),
            (documents["count"], theirs.get(f"{record['split']}_documents")),
            (queries["mean_chars"], theirs.get("avg_query_chars")),
            (documents["mean_chars"], theirs.get("avg_document_chars")),
        ]
        if None in (pairs[0][1], pairs[1][1]):  # not a split that the paper counts
            pairs = [(ours, None) for ours, _ in pairs]
        beside = [cell for ours, paper_value in pairs for cell in (number(ours, 0), printed(number(paper_value, 0)))]
        tokens = [number(documents[key], 0) for key in ("mean_tokens", "median_tokens", "max_tokens")]
        rows.append([data_of(record), *beside, *tokens, record["tokenizer"].rpartition("/")[2]])
    names = ("queries", "documents", "characters a query", "characters a document")
    header = ["data", *(text for name in names for text in (name, "paper"))]
    header += ["tokens a document", "median", "longest", "tokenizer"]
    caption = "Counts and mean lengths, in italics the paper's for the same split. Tokens by the tokenizer named last."
    blocks = [table(caption, header, rows), length_plot(records)]
    return Section("Lengths (Table 11, Figures 5 and 6)", blocks, ("11",))


def texts_section(records: list[dict]) -> Section | None:
    """Return Tables 13 and 16: how a query and its document begin."""
    rows = [[data_of(record), record["example"]["query"], record["example"]["passage"]] for record in records]
    header = ["data", "query", "its document begins"]
    found = table("The first query of each task.", header, rows, words=3, folded=True)
    return Section("Examples of queries and documents (Tables 13 and 16)", [found], ("13", "16")) if rows else None


def spans_section(records: list[dict]) -> Section | None:
    """Return Table 12: where answers begin."""
    if not records:
        return None
    rows = []
    for record in records:
        positions, total = record["positions"], sum(record["quarters"]) or 1
        numbers = [positions["count"], *positions["quartiles"], positions["mean_document_chars"]]
        shares = [percent(count / total) for count in record["quarters"]]
        rows.append([data_of(record), *(number(value, 0) for value in numbers), *shares])
    for task, theirs in paper.values("12").items():
        rows.append(paper_row(task, "", *(number(value, 0) for value in theirs.values())))
    header = ["data", "answers", "1st quartile", "2nd quartile", "3rd quartile", "characters a document"]
    header += [f"in quarter {index}" for index in range(1, 5)]
    caption = (
        "Where answers begin: quartiles in characters from the document's start, and the share of answers that begin "
        "in each quarter of their document. Rows in italics are printed in the paper."
    )
    return Section("Where answers begin (Table 12)", [table(caption, header, rows), *errata("12")], ("12",))


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
            found = {entry["tokens"]: entry for entry in record["rows"]}
            rows.append([sources.system(record), *(_seconds_of(found.get(length)) for length in lengths)])
        caption = (
            f"Seconds for one text on {machine}, medians: in the model + in the tokenizer, of the whole call, which "
            "also cuts, batches and copies. In brackets the share of the text that was read, where it is not all."
        )
        header = ["system", *(f"{length:,} tokens" for length in lengths)]
        blocks += [efficiency_plot(machine, members), table(caption, header, rows)]
    caption = (
        f"Printed in the paper: {paper.table('5')['measure']}, another machine than ours, so there are no differences."
    )
    blocks += [printed_table(caption, "5", seconds, lambda length: f"{int(length):,} tokens"), *errata("5")]
    return Section("Efficiency (Table 5)", blocks, ("5",)) if records else None


def _seconds_of(entry: dict | None) -> str:
    if entry is None:
        return DASH
    text = f"{seconds(entry['encode_seconds'])} + {seconds(entry.get('tokenize_seconds'))}"
    if entry.get("total_seconds") is not None:
        text += f" of {seconds(entry['total_seconds'])}"
    seen = entry.get("seen_share")
    return text if seen is None or seen == 1 else f"{text} ({percent(seen)} seen)"


def clusters_section(records: list[dict], sources: Sources) -> Section | None:
    """Return Figure 3: a map of each system's vectors, with a number beside the pictures."""
    rows = [
        [
            sources.system(record),
            number(sum(record["sources"].values()), 0),
            str(record["knn"]["k"]),
            percent(record["knn"]["accuracy"]),
            percent(record["knn"]["chance"]),
        ]
        for record in records
    ]
    caption = (
        "Texts whose source their nearest neighbours name, each text left out of its own vote, in the full space of "
        "the vectors. The maps below only illustrate it: t-SNE keeps neighbourhoods, not distances."
    )
    found = table(caption, ["system", "texts", "neighbours", "named rightly", "by chance"], rows)
    return Section("Clusters (Figure 3)", [found, *map(cluster_plot, records)]) if rows else None
