"""Records of retrieval scores as plain JSON: everything that tables, plots and a careful reader need."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

import numpy as np

from .analyses.shared import installed_versions
from .analyses.texts import by_length, ndcg_by_quarter
from .config import EncoderSettings, TaskSettings, TrainingTask
from .rankers import rank_tfidf
from .search import Run, score_metrics, trec_order
from .statistics import mean_interval
from .systems import is_dense
from .tasks.schema import RetrievalTask

SHOWN_CHARS = 300  # of a text among the successes and failures
SHOWN = 3  # successes and failures
TFIDF_SEEDS = 20


@dataclass(frozen=True)
class Outcome:
    """What one system did on one task.

    Attributes:
        scores: {metric: {qid: 0 to 1}}.
        run: the ranking behind them; None where they are means over several.
        details: further fields of the record: vectors_per_document, seen_share, seconds_per_document, ...
    """

    scores: dict[str, dict[str, float]]
    run: Run | None = None
    details: dict = field(default_factory=dict)


def score_run(run: Run, task: RetrievalTask, details: dict) -> Outcome:
    """Return the outcome of a ranking."""
    return Outcome(score_metrics(run, task.qrels), run, details)


def run_tfidf(width: int, task: RetrievalTask, details: dict) -> Outcome:
    """Return the outcome of random projections: each query's mean over TFIDF_SEEDS matrices, and their spread."""
    means: dict[str, np.ndarray] = {}
    spread = []
    for run in rank_tfidf(task, width, TFIDF_SEEDS):
        scores = {metric: np.array(list(values.values())) for metric, values in score_metrics(run, task.qrels).items()}
        spread.append(scores["ndcg_at_10"].mean())
        means = {metric: means.get(metric, 0) + values / TFIDF_SEEDS for metric, values in scores.items()}
    scores = {metric: dict(zip(task.qrels, values.tolist(), strict=True)) for metric, values in means.items()}
    spread = {"seeds": TFIDF_SEEDS, "std_over_seeds": float(np.std(spread, ddof=1))}
    return Outcome(scores, details={**details, "vectors_per_document": 1.0, "dimensions": width, **spread})


def retrieval_record(
    system: str,
    settings: EncoderSettings,
    task_settings: TaskSettings,
    task: RetrievalTask,
    outcome: Outcome,
    seconds: float,
) -> dict:
    """Return the record of one system on one task; scores are from 0 to 1 (docs/evaluation.md lists the fields)."""
    metrics = {
        name: {"mean": float(np.mean(list(scores.values()))), "interval_95": list(mean_interval(list(scores.values())))}
        for name, scores in outcome.scores.items()
    }
    details = dict(outcome.details)
    # None where the encoder does not show its tokens; missing means that nothing was truncated.
    cut = details.pop("truncated_documents", 0)
    cut_queries = details.pop("truncated_queries", None if cut is None else 0)
    query_scores = outcome.scores["ndcg_at_10"]
    distractors = task_settings.distractors
    return {
        "kind": "retrieval",
        "system": system,
        "encoder": settings.model,
        "paper_row": settings.paper_row,
        "claim": claim(settings, task),
        "trained_on": [str(training) for training in settings.trained_on],
        "task": task.name,
        "split": task.split,
        "source": task.source,
        "revision": task.revision,
        "data_fingerprint": task.fingerprint,
        "distractors": distractors
        and {"source": distractors.path, "count": distractors.count, "seed": distractors.seed},
        "ndcg_at_10": metrics["ndcg_at_10"]["mean"],
        "interval_95": metrics["ndcg_at_10"]["interval_95"],
        "metrics": metrics,
        **details,
        "counts": {
            "queries": len(task.queries),
            "documents": len(task.documents),
            "truncated_documents": cut,
            "truncated_queries": cut_queries,
        },
        "seconds": round(seconds, 3),
        "versions": installed_versions(),
        "date": date.today().isoformat(),
        "query_scores": query_scores,
        "ranks": best_ranks(task, outcome.run) if outcome.run else None,
        "by_quarter": ndcg_by_quarter(query_scores, task.positions) if task.positions else None,
        **(dump(task, outcome.run, query_scores) if outcome.run else {}),
    }


def claim(settings: EncoderSettings, task: RetrievalTask) -> str:
    """Return whether a score is of a model that has seen the task's training data."""
    if not is_dense(settings.model):
        return "untrained"
    if not settings.trained_on:
        return "not stated"
    names = {training.name if isinstance(training, TrainingTask) else training for training in settings.trained_on}
    return "fine-tuned" if names & {task.name, task.base_name} else "zero-shot"


def add_lengths(record: dict, tokenizer: str, answer_tokens: Mapping[str, int]) -> None:
    """Add to a record its scores by the length of the answer (Table 24), which a model's tokenizer counts.

    Args:
        answer_tokens: {qid: tokens of its longest answer}.
    """
    record["by_length"] = {"tokenizer": tokenizer, "rows": by_length(record["query_scores"], dict(answer_tokens))}


def best_ranks(task: RetrievalTask, run: Run) -> dict[str, int | None]:
    """Return each query's rank of its best answer, from 1; None if the system did not return one."""
    return {qid: _best_rank(run.get(qid, {}), judged) for qid, judged in task.qrels.items()}


def dump(task: RetrievalTask, run: Run, query_scores: dict[str, float]) -> dict[str, list[dict]]:
    """Return texts of a few best and worst queries (Table 25); equal scores are ordered by id."""
    worst = sorted(query_scores, key=lambda qid: (query_scores[qid], qid))
    best = sorted(query_scores, key=lambda qid: (-query_scores[qid], qid))
    failures = [qid for qid in worst if query_scores[qid] < 1][:SHOWN]
    successes = [qid for qid in best if query_scores[qid] > 0][:SHOWN]
    return {
        what: [_example(task, run, qid) for qid in qids]
        for what, qids in (("failures", failures), ("successes", successes))
    }


def _example(task: RetrievalTask, run: Run, qid: str) -> dict:
    answer = next(pid for pid, grade in task.qrels[qid].items() if grade)
    scores = run.get(qid, {})
    found = next(iter(trec_order(scores)), None)
    return {
        "qid": qid,
        "query": task.queries[qid][:SHOWN_CHARS],
        "answer": answer,
        "answer_start": task.documents[answer][:SHOWN_CHARS],
        "rank": _best_rank(scores, task.qrels[qid]),
        "found": found,
        "found_start": task.documents[found][:SHOWN_CHARS] if found else None,
    }


def _best_rank(scores: Mapping[str, float], judged: Mapping[str, int]) -> int | None:
    places = (place for place, pid in enumerate(trec_order(scores), 1) if judged.get(pid, 0) > 0)
    return next(places, None)
