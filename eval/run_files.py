"""Score run files of any system against a file of judgments, both in TREC's formats."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from m2bert.files import digest

from .config import EncoderSettings, TaskSettings
from .records import LoadedTask, retrieval_record
from .search import DEPTH, METRICS_DEPTH, Run, score_metrics
from .tasks.schema import RetrievalTask, fingerprint_of
from .trec import read_qrels, read_run

logger = logging.getLogger(__name__)

UNKNOWN = "not stated"  # how a system of which only rankings are known treats documents, and what it was trained on


def score_run_files(
    runs: list[Path], qrels: Path, ranked: Callable[[str, RetrievalTask, Run], None] | None = None
) -> list[dict]:
    """Return a retrieval record for each run file, over all queries that are judged.

    A query that a file does not rank counts 0. Queries without judgments are left out, as trec_eval leaves them out.
    Warnings count both.

    Args:
        ranked: called with the system's name, the task and the ranking, of which DEPTH documents are read then instead
            of the METRICS_DEPTH that decide the scores.
    """
    judgments = read_qrels(qrels)
    unanswered = sum(max(judged.values()) <= 0 for judged in judgments.values())
    if unanswered:
        logger.warning("%s: %d of %d queries have no relevant document and count 0", qrels, unanswered, len(judgments))
    fingerprint = fingerprint_of({}, {}, judgments)
    task = RetrievalTask(_stem(qrels), UNKNOWN, {}, {}, judgments, fingerprint, str(qrels))
    loaded = LoadedTask(TaskSettings(data=str(qrels)), task, None)
    records = []
    for path, name in _names(runs).items():
        start = time.perf_counter()
        run = _judged(read_run(path, DEPTH if ranked else METRICS_DEPTH), judgments, path)
        if ranked:
            ranked(name, task, run)
        scores = score_metrics(run, judgments)
        details = dict.fromkeys(("policy", "vectors", "claim"), UNKNOWN) | {"name": name, "hybrid": None}
        details |= {"truncated_documents": None, "run_sha256": digest(path)}
        settings = EncoderSettings(model=str(path))
        records.append(retrieval_record(name, settings, loaded, scores, run, details, time.perf_counter() - start))
    return records


def _judged(run: Run, judgments: dict[str, dict[str, int]], path: Path) -> Run:
    """Return the rankings of queries that are judged; warn of the others, and of queries without a ranking."""
    found = {qid: scores for qid, scores in run.items() if qid in judgments}
    if not found:
        raise ValueError(
            f"{path} ranks none of the {len(judgments)} judged queries, but others, as {next(iter(run))!r}"
        )
    if len(found) < len(run):
        logger.warning("%s: %d of %d queries have no judgments; left out", path, len(run) - len(found), len(run))
    if len(found) < len(judgments):
        missing = len(judgments) - len(found)
        logger.warning("%s: %d of %d judged queries are not ranked; they count 0", path, missing, len(judgments))
    return found


def _names(paths: list[Path]) -> dict[Path, str]:
    """Return what tables call each file: its name without ending, or its path, if another would be called the same."""
    short = {path: _stem(path) for path in paths}
    return {path: str(path) if list(short.values()).count(name) > 1 else name for path, name in short.items()}


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return Path(name).stem if Path(name).suffix in (".run", ".txt", ".trec", ".qrels", ".tsv", ".res") else name
