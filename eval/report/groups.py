"""Which systems may stand in one ranking, and which of the paper's numbers belong beside them."""

from collections import defaultdict
from collections.abc import Iterable

from . import paper

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
}
LEXICAL = GROUPS["lexical", "untrained"]


def group_of(system: dict) -> str:
    """Title of the group of a retrieval record or of a model of the paper."""
    claim = system["claim"]
    if claim == "untrained":
        return LEXICAL
    kind = "hybrid" if system.get("hybrid") else "one" if system["vectors"] == "one" else "several"
    return GROUPS.get((kind, claim), GROUPS[kind, "not stated"])


def grouped(records: Iterable[dict]) -> dict[str, list[dict]]:
    """Records by the title of their group, in the order of GROUPS, the best of each group first."""
    groups = defaultdict(list)
    for record in sorted(records, key=lambda record: (-record["ndcg_at_10"], record["system"])):
        groups[group_of(record)].append(record)
    return {title: groups[title] for title in GROUPS.values() if title in groups}


def paper_table(record: dict) -> str | None:
    """The table of the paper that scores this very task: "15" (LoCoV1), "23" (LoCoV0), or None."""
    if record["split"] != "test" or record.get("distractors"):
        return None
    table = "23" if is_locov0(record) else "15"
    return table if column_of(record) in paper.columns(table) else None


def is_locov0(record: dict) -> bool:
    """Whether a task was read from the commits of the Hub that held LoCoV0."""
    from ..tasks.from_hub import LOCOV0_REVISION  # slow to import

    wanted, read = LOCOV0_REVISION.split(","), (record.get("revision") or "").split(",")
    return len(wanted) == len(read) and all(map(str.startswith, read, wanted))


def column_of(record: dict) -> str:
    """The record's task as the paper's tables name it, whatever collection stands before it."""
    return record["task"].rpartition("/")[2]


def paper_name(record: dict) -> str | None:
    """The row of the paper's tables that a record repeats: the one it names; BM25 is BM25."""
    return record.get("paper_row") or ("BM25" if record.get("encoder") == "bm25" else None)


def paper_rows(table: str, columns: list[str]) -> dict[str, list[str]]:
    """Models of one of the paper's tables that have all these columns, by the title of their group, best first."""
    groups = defaultdict(list)
    means = {name: paper.mean(table, name, columns) for name in paper.values(table)}
    for name in sorted((name for name in means if means[name] is not None), key=lambda name: -means[name]):
        groups[group_of(paper.model(name))].append(name)
    return groups
