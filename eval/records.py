"""Records of retrieval scores: everything that a table, a plot or a sceptic needs, as plain JSON."""

from collections.abc import Mapping
from datetime import date

import numpy as np

from .analyses.lengths import by_length
from .analyses.shared import installed_versions
from .analyses.spans import ndcg_by_quarter
from .config import EncoderSettings, TaskSettings, TrainingTask
from .intervals import mean_interval
from .outcomes import Outcome
from .search import Run, trec_order
from .systems import is_dense
from .tasks.schema import RetrievalTask

SHOWN_CHARS = 300  # of a text among the successes and failures
SHOWN = 3  # successes and failures


def retrieval_record(
    system: str,
    settings: EncoderSettings,
    task_settings: TaskSettings,
    task: RetrievalTask,
    outcome: Outcome,
    seconds: float,
) -> dict:
    """The record of one system on one task; scores are from 0 to 1 (docs/evaluation.md lists the fields)."""
    metrics = {name: _mean_and_interval(list(scores.values())) for name, scores in outcome.scores.items()}
    details = dict(outcome.details)
    # None where the encoder does not show its tokens; what has no word on it reads documents whole.
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
    """Whether a score is of a model that has seen the task's training data."""
    if not is_dense(settings.model):
        return "untrained"
    if not settings.trained_on:
        return "not stated"
    names = {training.name if isinstance(training, TrainingTask) else training for training in settings.trained_on}
    return "fine-tuned" if names & {task.name, task.base_name} else "zero-shot"


def add_lengths(record: dict, tokenizer: str, answer_tokens: Mapping[str, int]) -> None:
    """Complete a record with its scores by the length of the answer (Table 24), which a model's tokenizer counts.

    Args:
        answer_tokens: {qid: tokens of its longest answer}.
    """
    record["by_length"] = {"tokenizer": tokenizer, "rows": by_length(record["query_scores"], dict(answer_tokens))}


def best_ranks(task: RetrievalTask, run: Run) -> dict[str, int | None]:
    """For each query the rank of its best answer, from 1; None: not among those that the system returned."""
    return {qid: _best_rank(run.get(qid, {}), judged) for qid, judged in task.qrels.items()}


def dump(task: RetrievalTask, run: Run, query_scores: dict[str, float]) -> dict[str, list[dict]]:
    """Texts of a few best and worst queries (Table 25): of equal scores those whose ids come first."""
    worst = sorted(query_scores, key=lambda qid: (query_scores[qid], qid))
    best = sorted(query_scores, key=lambda qid: (-query_scores[qid], qid))
    failures = [qid for qid in worst if query_scores[qid] < 1][:SHOWN]
    successes = [qid for qid in best if query_scores[qid] > 0][:SHOWN]
    return {
        what: [_shown(task, run, qid) for qid in qids]
        for what, qids in (("failures", failures), ("successes", successes))
    }


def _shown(task: RetrievalTask, run: Run, qid: str) -> dict:
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


def _mean_and_interval(scores: list[float]) -> dict:
    return {"mean": float(np.mean(scores)), "interval_95": list(mean_interval(scores))}
