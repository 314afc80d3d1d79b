"""What one system did on one task: its scores for each query, and what it cost."""

from dataclasses import dataclass, field

import numpy as np

from .search import Run, rank_vectors
from .tasks.schema import RetrievalTask

TFIDF_SEEDS = 20


@dataclass(frozen=True)
class Outcome:
    """Scores {metric: {qid: 0 to 1}}, the ranking behind them (None where they are means over several), and details.

    `details` are fields of the record as they stand: vectors_per_document, seen_share, seconds_per_document, ...
    """

    scores: dict[str, dict[str, float]]
    run: Run | None = None
    details: dict = field(default_factory=dict)


def score_run(run: Run, task: RetrievalTask, details: dict | None = None) -> Outcome:
    """The outcome of a ranking."""
    from .metric import score_metrics  # slow to import, and wanted only when a model has been loaded

    return Outcome(score_metrics(run, task.qrels), run, details or {})


def run_tfidf(width: int, task: RetrievalTask) -> Outcome:
    """Random projections of TF-IDF: each query's mean over TFIDF_SEEDS matrices, and the spread over them."""
    from .metric import score_metrics
    from .tfidf import TfidfProjection, project

    encoder = TfidfProjection(width).fit(list(task.documents.values()))
    queries = encoder.tfidf(list(task.queries.values()))
    documents = encoder.tfidf(list(task.documents.values()))
    means: dict[str, np.ndarray] = {}
    spread = []
    for seed in range(TFIDF_SEEDS):
        run = rank_vectors(task, project(queries, width, seed), project(documents, width, seed))
        scores = {metric: np.array(list(values.values())) for metric, values in score_metrics(run, task.qrels).items()}
        spread.append(scores["ndcg_at_10"].mean())
        means = {metric: means.get(metric, 0) + values / TFIDF_SEEDS for metric, values in scores.items()}
    scores = {metric: dict(zip(task.qrels, values.tolist(), strict=True)) for metric, values in means.items()}
    details = {"dimensions": width, "seeds": TFIDF_SEEDS, "std_over_seeds": float(np.std(spread, ddof=1))}
    return Outcome(scores, details={"vectors_per_document": 1.0, **details})
