"""Records of retrieval scores as plain JSON: everything that tables, plots and a careful reader need."""

import itertools
from dataclasses import dataclass
from datetime import date
from functools import cached_property

import numpy as np

from .analyses.shared import decisive_versions, origin
from .analyses.texts import ndcg_by_quarter
from .config import EncoderSettings, TaskSettings, TrainingTask, is_dense
from .rankers import Bm25Ranker, rank_tfidf
from .search import Run, score_metrics, trec_order
from .statistics import mean_intervals
from .tasks.schema import RetrievalTask

SHOWN_CHARS = 300  # of a text among the successes and failures
SHOWN = 3  # successes and failures
TFIDF_SEEDS = 20

Scores = dict[str, dict[str, float]]  # {metric: {qid: 0 to 1}}


@dataclass(frozen=True)
class LoadedTask:
    """A task, the one on which a hybrid's weight is chosen (None if no hybrid needs it), and where they come from."""

    settings: TaskSettings
    task: RetrievalTask
    development: RetrievalTask | None

    @cached_property
    def bm25(self) -> Run:
        """BM25's ranking of the task, made once for all systems."""
        return Bm25Ranker().rank(self.task)

    @cached_property
    def development_bm25(self) -> Run:
        """BM25's ranking of the development task."""
        return Bm25Ranker().rank(self.development)


def score_tfidf(width: int, task: RetrievalTask) -> tuple[Scores, dict]:
    """Return each query's mean over TFIDF_SEEDS random projections, and what a record says of them: their spread."""
    means: dict[str, np.ndarray] = {}
    spread = []
    for run in rank_tfidf(task, width, TFIDF_SEEDS):
        scores = {metric: np.array(list(values.values())) for metric, values in score_metrics(run, task.qrels).items()}
        spread.append(scores["ndcg_at_10"].mean())
        means = {metric: means.get(metric, 0) + values / TFIDF_SEEDS for metric, values in scores.items()}
    scores = {metric: dict(zip(task.qrels, values.tolist(), strict=True)) for metric, values in means.items()}
    about = {"vectors_per_document": 1.0, "dimensions": width, "seeds": TFIDF_SEEDS}
    return scores, about | {"std_over_seeds": float(np.std(spread, ddof=1))}


def retrieval_record(
    system: str,
    settings: EncoderSettings,
    loaded: LoadedTask,
    scores: Scores,
    run: Run | None,
    details: dict,
    seconds: float,
) -> dict:
    """Return the record of one system on one task; docs/evaluation.md lists the fields.

    Args:
        run: the ranking behind the scores; None where they are means over several.
        details: further fields of the record: vectors_per_document, seen_share, seconds_per_document, ...
    """
    task, distractors = loaded.task, loaded.settings.distractors
    rows = np.array([list(values.values()) for values in scores.values()])
    metrics = {
        name: {"mean": float(row.mean()), "interval_95": list(bounds)}
        for name, row, bounds in zip(scores, rows, mean_intervals(rows), strict=True)
    }
    details = dict(details)
    # None where the encoder does not show its tokens; missing means that nothing was truncated.
    cut = details.pop("truncated_documents", 0)
    cut_queries = details.pop("truncated_queries", None if cut is None else 0)
    query_scores = scores["ndcg_at_10"]
    ranks = best_ranks(task, run) if run else None
    return {
        "kind": "retrieval",
        "system": system,
        "encoder": settings.model,
        "paper_row": settings.paper_row,
        "claim": claim(settings, task),
        "trained_on": [str(training) for training in settings.trained_on],
        **origin(task),
        "distractors": distractors
        and {"source": distractors.path, "count": distractors.count, "seed": distractors.seed},
        "ndcg_at_10": metrics["ndcg_at_10"]["mean"],
        "interval_95": metrics["ndcg_at_10"]["interval_95"],
        "metrics": metrics,
        **details,
        "counts": {
            "queries": len(task.qrels),
            "documents": len(task.documents) or None,  # of a run file nobody knows
            "truncated_documents": cut,
            "truncated_queries": cut_queries,
        },
        "seconds": round(seconds, 3),
        "versions": decisive_versions(),
        "date": date.today().isoformat(),
        "query_scores": query_scores,
        "ranks": ranks,
        "by_quarter": ndcg_by_quarter(query_scores, task.positions) if task.positions else None,
        **(examples(task, run, query_scores, ranks) if run and task.documents else {}),
    }


def claim(settings: EncoderSettings, task: RetrievalTask) -> str:
    """Return whether a score is of a model that has seen the task's training data."""
    if not is_dense(settings.model):
        return "untrained"
    if not settings.trained_on:
        return "not stated"
    names = {training.name if isinstance(training, TrainingTask) else training for training in settings.trained_on}
    return "fine-tuned" if names & {task.name, task.base_name} else "zero-shot"


def best_ranks(task: RetrievalTask, run: Run) -> dict[str, int | None]:
    """Return each query's rank of its best answer, from 1; None if the system did not return one."""
    return {qid: best_rank(run.get(qid, {}), judged) for qid, judged in task.qrels.items()}


def best_rank(scores: dict[str, float], judged: dict[str, int]) -> int | None:
    """Return the rank, from 1, at which the first relevant document stands in trec_eval's order, or None."""
    found = [pid for pid in scores if judged.get(pid, 0) > 0]
    if not found:
        return None
    rounded = np.array(list(scores.values()), dtype=np.float32)
    score, best = max((np.float32(scores[pid]), pid) for pid in found)
    equal = itertools.compress(scores, rounded == score)
    return 1 + int((rounded > score).sum()) + sum(pid > best for pid in equal)


def examples(
    task: RetrievalTask, run: Run, query_scores: dict[str, float], ranks: dict[str, int | None]
) -> dict[str, list[dict]]:
    """Return texts of a few best and worst queries (Table 25); equal scores are ordered by id."""
    worst = sorted(query_scores, key=lambda qid: (query_scores[qid], qid))
    best = sorted(query_scores, key=lambda qid: (-query_scores[qid], qid))
    shown = {
        "failures": [qid for qid in worst if query_scores[qid] < 1][:SHOWN],
        "successes": [qid for qid in best if query_scores[qid] > 0][:SHOWN],
    }

    def example(qid: str) -> dict:
        answer = next(iter(task.answers(qid)), None)
        found = next(iter(trec_order(run.get(qid, {}))), None)
        return {
            "qid": qid,
            "query": task.queries[qid][:SHOWN_CHARS],
            "answer": answer,
            "answer_start": task.documents.get(answer, "")[:SHOWN_CHARS],
            "rank": ranks[qid],
            "found": found,
            "found_start": task.documents[found][:SHOWN_CHARS] if found else None,
        }

    return {kind: [example(qid) for qid in qids] for kind, qids in shown.items()}
