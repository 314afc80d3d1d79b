"""Differences between systems on the same queries, with paired bootstrap intervals."""

from collections import defaultdict

from .intervals import paired_difference_interval

# One of two equal systems wins all of n queries with probability 2 ** (1 - n): below six queries that is more than 5 %,
# whatever a bootstrap over so few says.
FEWEST_QUERIES = 6


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
        Rows {"system", "other", "difference", "interval_95", "beyond_chance"}, scores from 0 to 1. The last says
        whether the interval leaves out zero, with at least FEWEST_QUERIES queries.

    Raises:
        ValueError: the task has no such system.
    """
    systems = scores_by_system(records)
    if against is not None and against not in systems:
        raise ValueError(f"system {against!r} has no scores here; there are: {', '.join(systems)}")
    others = [against] if against else list(systems)
    rows = []
    for position, (system, scores) in enumerate(systems.items()):
        for other in others if against else others[:position]:
            if other != system:
                difference, low, high = paired_difference_interval(scores, systems[other])
                beyond = len(scores) >= FEWEST_QUERIES and (low > 0 or high < 0)
                row = {"system": system, "other": other, "difference": difference, "interval_95": [low, high]}
                rows.append({**row, "beyond_chance": beyond})
    return rows


def scores_by_system(records: list[dict]) -> dict[str, dict[str, float]]:
    """{system: {qid: nDCG@10}}. A later system of the same name with other scores is called "NAME #2", and so on."""
    systems: dict[str, dict[str, float]] = {}
    for record in records:
        name, number = record["system"], 1
        while systems.get(name, record["query_scores"]) != record["query_scores"]:
            number += 1
            name = f"{record['system']} #{number}"
        systems[name] = record["query_scores"]
    return systems
