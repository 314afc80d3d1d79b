"""Scores by length and place of the answer, what was found and missed, and what training had seen of the tests."""

from . import paper
from .blocks import DASH, Cell, Group, Prose, Section, Table, interval, number, paper_row, plain_table, points, row
from .groups import grouped
from .overview import DataGroups
from .sources import Sources, shorten


def length_section(groups: DataGroups, sources: Sources) -> Section | None:
    """Table 24: nDCG@10 by the length of the answer's document."""
    tables = []
    for (task, split, fingerprint), records in groups.items():
        by_tokenizer: dict[str, list[dict]] = {}
        for record in records:
            if record.get("by_length"):
                by_tokenizer.setdefault(record["by_length"]["tokenizer"], []).append(record)
        for tokenizer, members in by_tokenizer.items():
            caption = f"{task}, {split}, data {shorten(fingerprint)}: answer documents counted in tokens of {tokenizer}"
            tables.append(_bucket_table(caption, members, sources))
    if not tables:
        return None
    buckets = paper.columns("24")
    rows = [
        paper_row(name, *(number(paper.value("24", name, bucket)) for bucket in buckets)) for name in paper.values("24")
    ]
    caption = (
        "Printed in the paper, over all twelve tasks of LoCoV1 together, without the number of queries. Not to be "
        "subtracted from the tables above, which are of single tasks."
    )
    tables.append(plain_table(caption, ["model", *buckets], rows))
    return Section("By length of the answer's document (Table 24)", tables, ("24",))


def _bucket_table(caption: str, records: list[dict], sources: Sources) -> Table:
    rows = records[0]["by_length"]["rows"]
    header = ["system", *(f"{entry['bucket']} ({entry['queries']:,} queries)" for entry in rows)]
    caption = f"{caption}. nDCG@10 in points with 95 % intervals."
    return _table_by(caption, header, records, sources, lambda record: record["by_length"]["rows"])


def place_section(groups: DataGroups, sources: Sources) -> Section | None:
    """nDCG@10 by the quarter of the document in which the answer begins."""
    tables = []
    for (task, split, fingerprint), records in groups.items():
        members = [record for record in records if record.get("by_quarter")]
        if members:
            rows = members[0]["by_quarter"]
            header = ["system", *(f"quarter {entry['quarter']} ({entry['queries']:,} queries)" for entry in rows)]
            caption = f"{task}, {split}, data {shorten(fingerprint)}. nDCG@10 in points with 95 % intervals."
            tables.append(_table_by(caption, header, members, sources, lambda record: record["by_quarter"]))
    return Section("By place of the answer in its document", tables) if tables else None


def _table_by(caption: str, header: list[str], records: list[dict], sources: Sources, rows_of) -> Table:
    def texts(record: dict) -> list[Cell]:
        entries = [
            f"{points(entry.get('ndcg_at_10'))} ({interval(entry.get('interval_95'))})" if entry["queries"] else DASH
            for entry in rows_of(record)
        ]
        return row(sources.cell(record), *entries)

    return Table(caption, header, [Group(title, list(map(texts, found))) for title, found in grouped(records).items()])


def examples_section(groups: DataGroups) -> Section | None:
    """Table 25: the best and the worst queries of the best system of each group, folded."""
    tables = [
        table
        for (task, split, _), records in groups.items()
        for best, *_ in grouped(records).values()
        if (table := _examples_table(best, f"{task}, {split}: {best['system']}"))
    ]
    said = Prose("Of each group's best system; those of the others are in the result files.")
    return Section("Successes and failures (Table 25)", [said, *tables], ("25",)) if tables else None


def _examples_table(record: dict, caption: str) -> Table | None:
    groups = []
    for title, key in (("Found", "successes"), ("Missed or found late", "failures")):
        rows = [
            row(
                example["query"],
                example["answer_start"],
                str(example.get("rank") or "not found"),
                DASH if example.get("rank") == 1 else example.get("found_start") or DASH,
            )
            for example in record.get(key) or []
        ]
        if rows:
            groups.append(Group(title, rows))
    if not groups:
        return None
    header = ["query", "its answer begins", "rank", "ranked first instead, begins"]
    return Table(caption, header, groups, text_columns=len(header), folded=True)


def overlap_section(overlaps: list[dict], records: list[dict]) -> Section | None:
    """What tests share with training data: from records of their own, and from those of trained models."""
    found = list(overlaps)
    for record in records:
        found += [overlap for overlap in record.get("overlap") or [] if overlap not in found]
    if not found:
        return None
    rows = [
        row(
            *(f"{side['task']}, {side['split']}" for side in (overlap["test"], overlap["train"])),
            *(number(overlap["documents"][key], 0) for key in ("count", "same", "near")),
            *(number(overlap["queries"].get(key), 0) for key in ("count", "same", "in_documents")),
        )
        for overlap in found
    ]
    caption = (
        "Same: equal but for case and spaces. Near: at least half of a document's sampled sequences of 13 words occur "
        "in the training documents. In a document: queries that stand word for word in a training document."
    )
    header = ["test", "training data", "test documents", "same", "near", "test queries", "same", "in a document"]
    return Section("Contamination", [plain_table(caption, header, rows, text_columns=2)])
