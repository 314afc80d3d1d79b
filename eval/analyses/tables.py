"""Records of analyses as tables for the terminal, one form for each kind."""

from ..statistics import align, points


def format_analysis(records: list[dict]) -> str:
    """The table of records that are all of one kind."""
    return TABLES[records[0]["kind"]](records)


def _lengths(records: list[dict]) -> str:
    header = ["task", "queries", "mean chars", "documents", "mean chars", "mean tokens", "median", "max"]
    rows = []
    for record in records:
        queries, documents = record["queries"], record["documents"]
        numbers = [queries["count"], queries["mean_chars"], documents["count"], documents["mean_chars"]]
        numbers += [documents[f"{which}_tokens"] for which in ("mean", "median", "max")]
        rows.append([record["task"], *(f"{number:,.0f}" for number in numbers)])
    return align(header, rows)


def _spans(records: list[dict]) -> str:
    header = ["task", "answers", "1st quartile", "2nd", "3rd", "mean document", "answers by quarter"]
    rows = []
    for record in records:
        positions = record["positions"]
        numbers = [positions["count"], *positions["quartiles"], positions["mean_document_chars"]]
        quarters = " ".join(map(str, record["quarters"]))
        rows.append([record["task"], *(f"{number:,.0f}" for number in numbers), quarters])
    return align(header, rows) + "\n(beginnings in characters)"


def _overlap(records: list[dict]) -> str:
    header = ["test", "train", "documents", "the same", "nearly", "queries", "the same"]
    rows = []
    for record in records:
        names = [f"{record[side]['task']} ({record[side]['split']})" for side in ("test", "train")]
        documents, queries = record["documents"], record["queries"]
        counts = [documents["count"], documents["same"], documents["near"], queries["count"], queries["same"]]
        rows.append([*names, *map(str, counts)])
    return align(header, rows)


def _needle(records: list[dict]) -> str:
    first = records[0]
    rows = [
        [str(row["position"]), *(points(record["rows"][number]["ndcg_at_10"]) for record in records)]
        for number, row in enumerate(first["rows"])
    ]
    rows.append(["% seen", *(points(record["seen_share"]) for record in records)])
    note = (
        f"(nDCG@10 in points by place of the needle; {first['queries']} queries, {first['passages']} passages and "
        f"{first['mean_document_chars']:,.0f} characters a document)"
    )
    return align(["place", *(record["system"] for record in records)], rows) + "\n" + note


def _clusters(records: list[dict]) -> str:
    rows = [
        [
            record["system"],
            str(len(record["points"])),
            "-" if record["truncated_texts"] is None else str(record["truncated_texts"]),
            str(len(record["sources"])),
            points(record["knn"]["accuracy"]),
            points(record["knn"]["chance"]),
        ]
        for record in records
    ]
    return align(["system", "texts", "cut", "sources", "neighbours' accuracy", "chance"], rows)


def _efficiency(records: list[dict]) -> str:
    rows = [
        [
            record["system"],
            str(row["tokens"]),
            *(f"{row[f'{part}_seconds']:.4f}" for part in ("tokenize", "encode", "total")),
            points(row["seen_share"]),
        ]
        for record in records
        for row in record["rows"]
    ]
    first = records[0]
    note = f"(seconds, medians; {first['device']}, {first['dtype']}, {first['threads']} CPU threads)"
    return align(["system", "tokens", "tokenizer", "model", "whole call", "% seen"], rows) + "\n" + note


TABLES = {
    "lengths": _lengths,
    "spans": _spans,
    "overlap": _overlap,
    "needle": _needle,
    "clusters": _clusters,
    "efficiency": _efficiency,
}
