"""A suite: every task of a folder of data folders, and one table over all of them."""

import logging
from pathlib import Path

from m2bert.files import visible

from .tasks.kinds import kind_of, lacks

logger = logging.getLogger(__name__)


def suite_folders(suite: Path, split: str) -> list[Path]:
    """Return the folders in `suite` that have a task in this split; a warning names each of the others."""
    found = []
    for folder in visible(suite, "*/") if suite.is_dir() else []:
        if problem := _problem(folder, split):
            logger.warning("%s: %s; left out", folder, problem)
        else:
            found.append(folder)
    if not found:
        raise ValueError(f"suite={str(suite)!r} is no folder of folders that each hold a task; see --data for such")
    return found


def _problem(folder: Path, split: str) -> str:
    """Return why a folder has no task in this split, told by the names in it alone, or nothing."""
    if kind_of(folder) is None:
        return "no retrieval data"
    return f"no {split} split" if lacks(folder, split) else ""


def format_suite(records: list[dict]) -> str:
    """Return systems by tasks: nDCG@10 in points, the mean over tasks, and its difference to the first system.

    Only systems that have a score on every task have a mean. Intervals resample the queries within each task.
    """
    from .statistics import align, beyond_chance, mean_over_tasks, points

    tasks = dict.fromkeys((record["task"], record["data_fingerprint"]) for record in records)
    systems: dict[str, dict[tuple, dict]] = {}
    for record in records:
        systems.setdefault(record["system"], {})[record["task"], record["data_fingerprint"]] = record
    complete = [name for name, found in systems.items() if len(found) == len(tasks)]
    scores = [[systems[name][task]["query_scores"] for name in complete] for task in tasks]
    means = dict(zip(complete, mean_over_tasks(scores), strict=True)) if complete else {}
    queries = sum(len(found[0]) for found in scores if found)
    rows = []
    for name, found in systems.items():
        cells = [points(found[task]["ndcg_at_10"] if task in found else None) for task in tasks]
        seconds = [each["seconds_per_document"] for each in found.values() if each.get("seconds_per_document")]
        cells += ["-"] * 4
        if mean := means.get(name):
            star = "*" if beyond_chance(mean.difference_interval, queries) else ""
            interval, gap = (
                f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}{mark}"
                for (low, high), sign, mark in ((mean.interval, "", ""), (mean.difference_interval, "+", star))
            )
            against = [f"{100 * mean.difference:+.1f}", gap] if name != complete[0] else ["-", "-"]
            cells[-4:] = [points(mean.mean), interval, *against]
        rows.append([name, *cells, f"{sum(seconds) / len(seconds):.3g}" if seconds else "-"])
    header = ["nDCG@10", *(task for task, _ in tasks), "mean", "95 % interval"]
    return align([*header, f"minus {complete[0] if complete else '-'}", "95 % interval", "s / document"], rows)
