"""The paper's analyses: needle (17), lengths (11, 13, 16), answer spans (12), efficiency (5), clusters (Figure 3)."""

from collections import defaultdict

from . import paper
from .analysis_plots import cluster_plot, efficiency_plot, length_plot, needle_plot
from .blocks import (
    DASH,
    Cell,
    Errata,
    Section,
    difference,
    interval,
    number,
    paper_row,
    percent,
    plain_table,
    points,
    row,
    seconds,
)
from .groups import paper_name
from .sources import Sources, data_of

NEEDLE_MODEL = "M2-BERT-32k"  # the curve of Figure 2 that reaches furthest


def needle_section(records: list[dict], sources: Sources) -> Section | None:
    """Table 17 and Figure 2: one plot and one table for each haystack."""
    haystacks = defaultdict(list)
    for record in records:
        haystacks[_haystack(record)].append(record)
    blocks = []
    for (title, passages), members in haystacks.items():
        comparable = passages == 40
        blocks.append(needle_plot(title, members, paper.values("17")[NEEDLE_MODEL] if comparable else {}))
        blocks.append(_needle_averages(title, members, comparable, sources))
        blocks.append(_needle_table(title, members, comparable))
    return Section("Needle in a haystack (Table 17, Figure 2)", blocks, ("17",)) if blocks else None


def _haystack(record: dict) -> tuple[str, int]:
    seed = record.get("seed")
    parts = [f"{record['passages']} passages a document", f"{record['queries']:,} queries"]
    parts += [f"seed {seed}"] if seed is not None else []
    return f"{data_of(record)}: {', '.join(parts)}", record["passages"]


def _needle_averages(title: str, records: list[dict], comparable: bool, sources: Sources):
    """Means over the places measured, beside the paper's over the same places."""
    rows = []
    for record in records:
        ours = 100 * _mean_score(record)
        theirs = paper.mean("17", paper_name(record), [str(entry["position"]) for entry in record["rows"]])
        gap = DASH if theirs is None or not comparable else difference(ours - theirs)
        places = f"{len(record['rows'])} of {record['passages']}"
        seen = percent(record.get("seen_share"))
        rows.append(row(sources.cell(record), places, seen, number(ours), gap))
    caption = f"{title}. nDCG@10 in points, averaged over the places measured. Seen: share of the documents."
    if comparable:
        places = [str(entry["position"]) for entry in records[0]["rows"]]
        for name in paper.values("17"):
            rows.append(paper_row(name, f"{len(places)} of 40", "", number(paper.mean("17", name, places)), ""))
        caption += (
            " In italics the paper's models over the same places; its passages are from Natural Questions, so its "
            "numbers are a reference for the shape and no target."
        )
    return plain_table(caption, ["system", "places", "seen", "average", "difference from the paper's row"], rows)


def _mean_score(record: dict) -> float:
    return sum(entry["ndcg_at_10"] for entry in record["rows"]) / len(record["rows"])


def _needle_table(title: str, records: list[dict], comparable: bool):
    """nDCG@10 by place, folded."""
    printed = list(paper.values("17")) if comparable else []
    scores = [{entry["position"]: entry for entry in record["rows"]} for record in records]
    rows = [
        row(
            str(place),
            *(_with_interval(found.get(place)) for found in scores),
            *(Cell(number(paper.value("17", name, str(place))), paper=True) for name in printed),
        )
        for place in sorted({place for found in scores for place in found})
    ]
    header = ["place", *(record["system"] for record in records), *printed]
    return plain_table(f"By place (0: the answer comes first): {title}", header, rows, folded=True)


def _with_interval(entry: dict | None) -> str:
    if entry is None:
        return DASH
    return f"{points(entry['ndcg_at_10'])} ({interval(entry.get('interval_95'))})"


def lengths_section(records: list[dict]) -> Section | None:
    """Table 11 with Figures 5 and 6: counts and lengths beside the paper's."""
    if not records:
        return None
    rows = []
    for record in records:
        queries, documents = record["queries"], record["documents"]
        printed = _printed_lengths(record)
        rows.append(
            row(
                data_of(record),
                *_beside(queries["count"], printed.get("queries")),
                *_beside(documents["count"], printed.get("documents")),
                *_beside(queries["mean_chars"], printed.get("query_chars")),
                *_beside(documents["mean_chars"], printed.get("document_chars")),
                *(number(documents[key], 0) for key in ("mean_tokens", "median_tokens", "max_tokens")),
                record["tokenizer"].rpartition("/")[2],
            )
        )
    names = ("queries", "documents", "characters a query", "characters a document")
    header = ["data", *(text for name in names for text in (name, "paper")), "tokens a document", "median", "longest"]
    caption = "Counts and mean lengths, in italics the paper's for the same split. Tokens by the tokenizer named last."
    table = plain_table(caption, [*header, "tokenizer"], rows)
    return Section("Lengths (Table 11, Figures 5 and 6)", [table, length_plot(records)], ("11",))


def _printed_lengths(record: dict) -> dict[str, float]:
    split = record["split"]
    printed = paper.values("11").get(record["task"], {})
    counts = {kind: printed.get(f"{split}_{kind}") for kind in ("queries", "documents")}
    if None in counts.values():
        return {}
    return counts | {f"{kind}_chars": printed[f"avg_{kind}_chars"] for kind in ("query", "document")}


def _beside(ours: float, theirs: float | None) -> list[Cell]:
    return [Cell(number(ours, 0)), Cell(number(theirs, 0), paper=True)]


def texts_section(records: list[dict]) -> Section | None:
    """Tables 13 and 16: how a query and its document begin."""
    if not records:
        return None
    rows = [row(data_of(record), record["example"]["query"], record["example"]["passage"]) for record in records]
    header = ["data", "query", "its document begins"]
    table = plain_table("The first query of each task.", header, rows, text_columns=3, folded=True)
    return Section("Examples of queries and documents (Tables 13 and 16)", [table], ("13", "16"))


def spans_section(records: list[dict]) -> Section | None:
    """Table 12: where answers begin."""
    if not records:
        return None
    rows = []
    for record in records:
        positions, total = record["positions"], sum(record["quarters"]) or 1
        quartiles = [number(value, 0) for value in positions["quartiles"]]
        shares = [percent(count / total) for count in record["quarters"]]
        mean = number(positions["mean_document_chars"], 0)
        rows.append(row(data_of(record), number(positions["count"], 0), *quartiles, mean, *shares))
    for task, printed in paper.values("12").items():
        rows.append(paper_row(task, "", *(number(printed[key], 0) for key in printed), *[""] * 4))
    quartiles = [f"{name} quartile" for name in ("1st", "2nd", "3rd")]
    shares = [f"in quarter {index}" for index in range(1, 5)]
    caption = (
        "Where answers begin: quartiles in characters from the document's start, and the share of answers that begin "
        "in each quarter of their document. Rows in italics are printed in the paper."
    )
    table = plain_table(caption, ["data", "answers", *quartiles, "characters a document", *shares], rows)
    return Section("Where answers begin (Table 12)", [table, Errata(paper.errata("12"))], ("12",))


def efficiency_section(records: list[dict], sources: Sources) -> Section | None:
    """Table 5: seconds to encode texts of given lengths, one plot and table for each machine."""
    machines = defaultdict(list)
    for record in records:
        count = record.get("threads")
        threads = f"{count} thread{'s' * (count > 1)}" if count else None
        machines[", ".join(filter(None, [record["device"], record.get("dtype"), threads]))].append(record)
    blocks = []
    for machine, members in machines.items():
        blocks += [efficiency_plot(machine, members), _efficiency_table(machine, members, sources)]
    if not blocks:
        return None
    lengths = paper.columns("5")
    rows = [
        paper_row(name, *(seconds(paper.value("5", name, length)) for length in lengths)) for name in paper.values("5")
    ]
    caption = f"Printed in the paper: {paper.measure('5')}, another machine than ours, so there are no differences."
    header = ["model", *(f"{int(length):,} tokens" for length in lengths)]
    blocks += [plain_table(caption, header, rows), Errata(paper.errata("5"))]
    return Section("Efficiency (Table 5)", blocks, ("5",))


def _efficiency_table(machine: str, records: list[dict], sources: Sources):
    lengths = sorted({entry["tokens"] for record in records for entry in record["rows"]})
    rows = []
    for record in records:
        found = {entry["tokens"]: entry for entry in record["rows"]}
        rows.append(row(sources.cell(record), *(_seconds_of(found.get(length)) for length in lengths)))
    caption = (
        f"Seconds for one text on {machine}, medians: in the model + in the tokenizer, of the whole call, which also "
        "cuts, batches and copies. In brackets the share of the text that was read, where it is not all."
    )
    return plain_table(caption, ["system", *(f"{length:,} tokens" for length in lengths)], rows)


def _seconds_of(entry: dict | None) -> str:
    if entry is None:
        return DASH
    text = f"{seconds(entry['encode_seconds'])} + {seconds(entry.get('tokenize_seconds'))}"
    if entry.get("total_seconds") is not None:
        text += f" of {seconds(entry['total_seconds'])}"
    seen = entry.get("seen_share")
    return text if seen is None or seen == 1 else f"{text} ({percent(seen)} seen)"


def clusters_section(records: list[dict], sources: Sources) -> Section | None:
    """Figure 3: a map of each system's vectors, with a number beside the pictures."""
    if not records:
        return None
    rows = [
        row(
            sources.cell(record),
            number(sum(record["sources"].values()), 0),
            str(record["knn"]["k"]),
            percent(record["knn"]["accuracy"]),
            percent(record["knn"]["chance"]),
        )
        for record in records
    ]
    caption = (
        "Texts whose source their nearest neighbours name, each text left out of its own vote, in the full space of "
        "the vectors. The maps below only illustrate it: t-SNE keeps neighbourhoods, not distances."
    )
    table = plain_table(caption, ["system", "texts", "neighbours", "named rightly", "by chance"], rows)
    return Section("Clusters (Figure 3)", [table, *map(cluster_plot, records)])
