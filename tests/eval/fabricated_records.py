"""Made-up records of every kind that a report reads; arguments replace fields."""

import math
import random

PACKAGES = {
    "versions": {"python": "3.11.7", "torch": "2.13.0", "sentence-transformers": "6.2.0"}, "date": "2026-11-20",
    "model_fingerprint": "5e" * 32, "encoder": "models/encoder", "policy": "truncate", "split": "test",
}  # fmt: skip
OVERLAP = {
    "kind": "overlap", "test": {"task": "qmsum", "split": "test"}, "train": {"task": "qmsum", "split": "train"},
    "documents": {"count": 35, "same": 1, "near": 2}, "queries": {"count": 272, "same": 4},
}  # fmt: skip


def retrieval(system="encoder / truncate", score=0.8, queries=40, **fields):
    """nDCG@10 of `queries` queries whose mean is `score`, spread by a generator that `system` seeds."""
    generator, spread = random.Random(system), min(0.1, score / 2, (1 - score) / 2)
    noise = [generator.uniform(-spread, spread) for _ in range(queries)]
    scores = {f"q{i}": score + noise[i] - sum(noise) / queries for i in range(queries)}
    return {
        "kind": "retrieval", "system": system, "vectors": "one", "vectors_per_document": 1.0, "claim": "zero-shot",
        "task": "qmsum", "data_fingerprint": "ab" * 32, "ndcg_at_10": score, "query_scores": scores,
        "interval_95": [score - 0.05, score + 0.05], "seen_share": 0.42, "seconds_per_document": 0.02,
        "metrics": {name: {"mean": score} for name in ("ndcg_at_1", "ndcg_at_10", "recall_at_100")},
        "counts": {"queries": queries, "documents": 35}, "device": "cpu", "dtype": "float32", **PACKAGES,
    } | fields  # fmt: skip


def bm25(score=0.91, **fields):
    lexical = {"encoder": "bm25", "policy": "whole", "vectors": "none", "claim": "untrained", "seen_share": 1.0}
    unknown = ("seconds_per_document", "model_fingerprint", "vectors_per_document", "device", "dtype")
    return retrieval("bm25", score, **dict.fromkeys(unknown) | lexical | fields)


def by_length(*scores):
    """nDCG@10 by bucket, ten queries each; None for a bucket without queries."""
    rows = []
    for name, score in zip(("<2k", "2k-8k", "8k-32k", ">32k"), scores, strict=True):
        queries, interval = (0, None) if score is None else (10, [0.1, 0.9])
        rows.append({"bucket": name, "queries": queries, "ndcg_at_10": score, "interval_95": interval})
    return {"tokenizer": "bert", "rows": rows}


def example(query="what was decided?", rank=1):
    return {"query": query, "answer_start": "Chair: welcome all.", "rank": rank, "found_start": "Another meeting."}


def mteb(task="Banking77Classification", value=0.8, **fields):
    about = {"kind": "mteb", "system": "encoder / truncate", "task": task, "metric": "accuracy", "value": value}
    return about | PACKAGES | fields


def needle(system="encoder / truncate", places=range(40), reach=20, **fields):
    """A curve that falls where the encoder stops to read."""
    scores = {place: 0.05 + 0.9 / (1 + math.exp((place - reach) / 2)) for place in places}
    rows = [{"position": at, "ndcg_at_10": x, "interval_95": [x - 0.04, x + 0.04]} for at, x in scores.items()]
    about = {"kind": "needle", "system": system, "task": "pydocs", "passages": 40, "queries": 100, "seed": 0}
    return about | {"rows": rows} | PACKAGES | fields


def lengths(task="qmsum", **fields):
    histogram = {"edges": [0, 16, 1024, 2048, 4096, 8192, 16384, 32768, 65536], "counts": [0, 0, 1, 2, 6, 14, 9, 3]}
    return {
        "kind": "lengths", "task": task, "split": "test", "data_fingerprint": "ab" * 32, "tokenizer": "bert",
        "queries": {"count": 272, "mean_chars": 433.0},
        "documents": {
            "count": 35, "mean_chars": 58000.0, "mean_tokens": 14000.0, "median_tokens": 13500.0, "max_tokens": 30000,
            "histogram": histogram,
        },
        "example": {"query": "what was decided?", "passage": "Chair: welcome all."},
    } | fields  # fmt: skip


def spans(**fields):
    return {
        "kind": "spans", "task": "pydocs", "split": "test", "data_fingerprint": "cd" * 32, "quarters": [10, 20, 30, 40],
        "positions": {"count": 100, "quartiles": [700.0, 5000.0, 20000.0], "mean_document_chars": 40000.0},
    } | fields  # fmt: skip


def clusters(system="encoder / truncate", **fields):
    generator = random.Random(1)
    sources = [index for index in range(3) for _ in range(40)]
    return {
        "kind": "clusters", "system": system, "sources": {"web": 40, "books": 40, "code": 40},
        "points": [[generator.gauss(4 * index, 1), generator.gauss(index % 2, 1), index] for index in sources],
        "knn": {"k": 10, "accuracy": 0.93, "chance": 0.33}, **PACKAGES,
    } | fields  # fmt: skip


def efficiency(system="encoder / truncate", seconds=0.01, **fields):
    rows = [
        {"tokens": tokens, "tokenize_seconds": tokens / 1e6, "encode_seconds": seconds * tokens / 128}
        for tokens in (128, 2048, 8192, 32768)
    ]
    about = {"kind": "efficiency", "system": system, "device": "cpu", "dtype": "float32", "threads": 2}
    return about | {"rows": rows} | PACKAGES | fields
