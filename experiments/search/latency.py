"""Index 100,000 documents of 500 tokens, and time warm queries: results/latency.json.

    python experiments/search/latency.py PRETRAIN_FOLDER

Documents are cut from the folder's texts and overlap: a new one begins every 280 tokens. They get up to 4 vectors each.
Queries are 8 consecutive words of 100 of them. One process; set OMP_NUM_THREADS=1 for one thread.
"""

import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from m2bert.search import Encoder, Index

MODEL = "models/m2bert-small"
DOCUMENTS, TOKENS, STRIDE, VECTORS = 100_000, 500, 280, 4
QUERIES, WARM_UP = 100, 20
RESULTS = Path(__file__).parent / "results" / "latency.json"


def documents(folder: Path, encoder: Encoder) -> Iterator[dict]:
    for path in sorted(folder.glob("*/*.parquet")):
        for text in pq.read_table(path)["text"].to_pylist():
            [spans] = encoder.base.token_spans([text])
            for first in range(0, len(spans) - TOKENS, STRIDE):
                yield {"text": text[spans[first, 0] : spans[first + TOKENS - 1, 1]]}


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def milliseconds(call, queries: list[str]) -> dict[str, float]:
    times = []
    for query in queries:
        start = time.perf_counter()
        call(query)
        times.append((time.perf_counter() - start) * 1e3)
    return {"p50": float(np.percentile(times[WARM_UP:], 50)), "p99": float(np.percentile(times[WARM_UP:], 99))}


def main(folder: str):
    cut = documents(Path(folder), Encoder(MODEL))
    rows = [row | {"id": str(number)} for number, row in zip(range(DOCUMENTS), cut, strict=False)]
    generator = random.Random(0)
    words = [generator.choice(rows)["text"].split() for _ in range(QUERIES + WARM_UP)]
    queries = [" ".join(each[first : first + 8]) for each in words for first in [generator.randrange(len(each) - 8)]]
    with tempfile.TemporaryDirectory() as scratch:
        index = Index.open(Path(scratch) / "index", model=MODEL, vectors=VECTORS)
        index.encoder.encode_documents(["warm up"])
        before, start = peak_gigabytes(), time.perf_counter()
        report = index.add(rows)
        result = {"documents": report.added, "tokens": report.tokens, "seconds": time.perf_counter() - start}
        result |= {
            "gigabytes before": before,
            "peak gigabytes": peak_gigabytes(),
            "vectors": index.table.count_vectors(),
        }
        result["bytes"] = index.info()["bytes"]
        for mode in ("bm25", "dense", "hybrid"):
            result[f"rank, {mode}, ms"] = milliseconds(lambda query, mode=mode: index.rank(query, mode), queries)
        result["search, 10 hits with passages, ms"] = milliseconds(index.search, queries)
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
