"""Score encoders on one retrieval task: one record each, ready for JSON."""

import platform
import re
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .encoders import SentenceTransformerEncoder, TfidfProjection, project
from .intervals import mean_interval
from .locov1 import RetrievalTask
from .metric import score_ranking
from .rankers import Bm25Ranker, DenseRanker, rank_vectors

POLICIES = ("truncate",)  # truncate: a text longer than the model's maximum loses its end
TFIDF_SEEDS = 20
PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "bm25s",
    "scikit-learn",
    "pytrec_eval-terrier",
    "numpy",
)


class Outcome(NamedTuple):
    """What one system reached: nDCG@10 of each query, and what only some systems have to tell."""

    query_scores: dict[str, float]
    truncated_documents: int = 0
    extras: dict = {}


def check_encoders(encoders: list[str], policy: str) -> None:
    """Refuse what cannot work before anything slow begins.

    Raises:
        ValueError: unknown policy; no encoder; an encoder that is a path but no folder; plain tfidf-rp
            without a dense encoder; a tfidf-rp width that is no positive number.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy {policy!r} is unknown; choose from: {', '.join(POLICIES)}")
    if not encoders:
        raise ValueError("no encoder given; name at least one: bm25, tfidf-rp:256, or a model folder")
    dense = [encoder for encoder in encoders if is_dense(encoder)]
    for encoder in encoders:
        if encoder == "tfidf-rp" and not dense:
            raise ValueError("encoder 'tfidf-rp' takes its width from a dense encoder; add one, or write tfidf-rp:256")
        if encoder.startswith("tfidf-rp:") and not re.fullmatch("tfidf-rp:[1-9][0-9]*", encoder):
            raise ValueError(f"encoder {encoder!r} has no positive number as width; write tfidf-rp:256")
    for encoder in dense:
        if (encoder.startswith((".", "/", "~")) or encoder.count("/") > 1) and not Path(encoder).is_dir():
            raise ValueError(f"encoder {encoder!r} is no folder; give a model folder, bm25 or tfidf-rp:256")


def is_dense(encoder: str) -> bool:
    """Whether the name stands for an embedding model rather than a baseline."""
    return encoder not in ("bm25", "tfidf-rp") and not encoder.startswith("tfidf-rp:")


def evaluate_encoders(encoders: list[str], task: RetrievalTask, policy: str = "truncate") -> list[dict]:
    """One record for each encoder; plain `tfidf-rp` becomes one for each width of the dense encoders.

    Args:
        encoders: "bm25", "tfidf-rp", "tfidf-rp:WIDTH", model folders or Hub ids.
        task: what to search.
        policy: what happens to texts longer than the model takes; one of POLICIES.

    Raises:
        ValueError: see `check_encoders`; or a model cannot be loaded.
    """
    check_encoders(encoders, policy)
    records = []
    widths: list[int] = []
    for encoder in sorted(set(encoders), key=encoders.index):
        if encoder == "tfidf-rp":
            continue
        start = time.perf_counter()
        if encoder == "bm25":
            outcome = Outcome(score_ranking(Bm25Ranker().rank(task), task.qrels))
        elif is_dense(encoder):
            outcome = run_dense(encoder, task)
            widths.append(outcome.extras["dimensions"])
        else:
            outcome = run_tfidf(int(encoder.removeprefix("tfidf-rp:")), task)
        records.append(make_record(encoder, task, policy, outcome, time.perf_counter() - start))
    for width in sorted(set(widths)) if "tfidf-rp" in encoders else []:
        name = f"tfidf-rp:{width}"
        if name not in encoders:
            start = time.perf_counter()
            outcome = run_tfidf(width, task)
            records.append(make_record(name, task, policy, outcome, time.perf_counter() - start))
    return records


def run_dense(encoder_name: str, task: RetrievalTask) -> Outcome:
    """Cosine search over the vectors of a model; documents beyond its maximum length are truncated."""
    encoder = SentenceTransformerEncoder(encoder_name)
    query_scores = score_ranking(DenseRanker(encoder).rank(task), task.qrels)
    truncated = encoder.count_truncated(list(task.documents.values()), "document")
    extras = {"dimensions": encoder.model.get_embedding_dimension(), "max_tokens": encoder.max_tokens}
    return Outcome(query_scores, truncated, extras)


def run_tfidf(width: int, task: RetrievalTask) -> Outcome:
    """Random projections of TF-IDF: each query's mean over TFIDF_SEEDS matrices."""
    encoder = TfidfProjection(width).fit(list(task.documents.values()))
    queries = encoder.tfidf(list(task.queries.values()))
    documents = encoder.tfidf(list(task.documents.values()))
    runs = (
        rank_vectors(task, project(queries, width, seed), project(documents, width, seed))
        for seed in range(TFIDF_SEEDS)
    )
    scores = np.array([list(score_ranking(run, task.qrels).values()) for run in runs])  # (seeds, queries)
    query_scores = dict(zip(task.qrels, scores.mean(axis=0).tolist(), strict=True))
    spread = float(scores.mean(axis=1).std(ddof=1))
    return Outcome(query_scores, extras={"dimensions": width, "seeds": TFIDF_SEEDS, "std_over_seeds": spread})


def make_record(encoder: str, task: RetrievalTask, policy: str, outcome: Outcome, seconds: float) -> dict:
    """The record of one encoder: scores (0 to 1), their 95 % interval, what was measured, and with what."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    scores = list(outcome.query_scores.values())
    return {
        "encoder": encoder,
        "task": task.name,
        "split": task.split,
        "policy": policy,
        "ndcg_at_10": sum(scores) / len(scores),
        "interval_95": list(mean_interval(scores)),
        **outcome.extras,
        "counts": {
            "queries": len(task.queries),
            "documents": len(task.documents),
            "truncated_documents": outcome.truncated_documents,
        },
        "seconds": round(seconds, 3),
        "versions": {"python": platform.python_version(), **versions},
        "data_fingerprint": task.fingerprint,
        "query_scores": outcome.query_scores,
    }
