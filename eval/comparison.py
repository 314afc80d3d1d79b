"""Differences between systems on the same queries, with paired bootstrap intervals."""

from collections import defaultdict

from .intervals import paired_difference_interval


def by_task(records: list[dict]) -> dict[tuple[str, str, str], list[dict]]:
    """Retrieval records of the same data: {(task, split, fingerprint): records}. Others never compare."""
    groups = defaultdict(list)
    for record in records:
        if record.get("kind") == "retrieval":
            groups[record["task"], record["split"], record["data_fingerprint"]].append(record)
    return dict(groups)


def differences(records: list[dict], against: str | None = None) -> list[dict]:
    """nDCG@10 of every system minus another's, on the same queries.

    Args:
        records: of one task, as `by_task` groups them.
        against: the system to compare with; every pair if None.

    Returns:
        Rows {"system", "other", "difference", "interval_95"}, scores from 0 to 1.

    Raises:
        ValueError: the task has no such system.
    """
    systems = {record["system"]: record["query_scores"] for record in records}
    if against is not None and against not in systems:
        raise ValueError(f"system {against!r} has no scores here; there are: {', '.join(systems)}")
    others = [against] if against else list(systems)
    rows = []
    for position, (system, scores) in enumerate(systems.items()):
        for other in others if against else others[:position]:
            if other != system:
                difference, *interval = paired_difference_interval(scores, systems[other])
                rows.append({"system": system, "other": other, "difference": difference, "interval_95": interval})
    return rows
