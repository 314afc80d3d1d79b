"""Measure what `docs/cluster.md` counts with: results/cluster.json. Needs Ray: pip install -e '.[ray]'.

    OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false python experiments/search/cluster.py PRETRAIN_FOLDER

Documents of 500 and of 8,000 tokens are cut from the folder's texts, which are joined, and written as JSON lines. One
process indexes them, then a Ray cluster of two workers on the same machine does. CPU seconds are of all processes.
"""

import json
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.search import Index
from m2bert.search.distributed import ClusterIndex
from m2bert.search.table import Table

MODEL = "models/m2bert-small"
CASES = {500: 20_000, 8_000: 1_000}  # tokens of a document, documents
FILES = 40
WORKERS = 2
RESULTS = Path(__file__).parent / "results" / "cluster.json"


def write_documents(
    folder: Path, texts: list[str], encoder: SentenceTransformerEncoder, tokens: int, number: int
) -> None:
    """Write `number` documents of `tokens` tokens, cut where a word begins in the texts one after another."""
    rows = []
    for first in range(0, len(texts), 50):
        text = "\n\n".join(texts[first : first + 50])
        [spans] = encoder.token_spans([text])
        for start in range(0, len(spans) - tokens, tokens):
            rows.append({"id": str(len(rows)), "text": text[spans[start, 0] : spans[start + tokens - 1, 1]]})
        if len(rows) >= number:
            break
    else:
        raise ValueError(f"the texts are too short: {len(rows)} documents of {tokens} tokens, and {number} are wanted")
    folder.mkdir()
    for file in range(FILES):
        lines = [json.dumps(row) + "\n" for row in rows[file:number:FILES]]
        (folder / f"{file:02d}.jsonl").write_text("".join(lines))


def cpu_seconds() -> float:
    """Return those of this process and all that it started, Ray's workers too, whether they still run or not."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in (own, *own.children(recursive=True)))


@contextmanager
def timed(result: dict, name: str):
    wall, cpu = time.perf_counter(), cpu_seconds()
    yield
    result[f"{name}, seconds"] = round(time.perf_counter() - wall, 1)
    result[f"{name}, CPU seconds"] = round(cpu_seconds() - cpu, 1)


def measured(index: Index, files: Path) -> dict:
    """Index the files; return times, of which the end (compaction and indexes) apart, and the bytes on the disk."""
    result, finish = {}, Table.finish

    def finish_timed(self):
        with timed(result, "of which indexes and compaction"):
            finish(self)

    Table.finish = finish_timed
    try:
        index.encoder.encode_documents(["warm up"])
        with timed(result, "all"):
            report = index.add(files)
    finally:
        Table.finish = finish
    disk = index.info()["bytes"]
    partitions = 0
    if "vectors_idx" in index.table._indexes():
        [stats] = index.table._table.stats.index_stats("vectors_idx")["indices"]
        partitions = stats["num_partitions"]
    vectors = index.table.count_vectors()
    return result | {"documents": report.added, "tokens": report.tokens, "vectors": vectors, "bytes": disk,
                     "partitions": partitions}  # fmt: skip


def main(folder: str):
    import ray

    encoder, results = SentenceTransformerEncoder(MODEL, None), {}
    texts = [
        text for path in sorted(Path(folder).glob("*/*.parquet")) for text in pq.read_table(path)["text"].to_pylist()
    ]
    ray.init("local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as scratch:
        for tokens, number in CASES.items():
            files = Path(scratch) / f"of-{tokens}"
            write_documents(files, texts, encoder, tokens, number)
            results[f"{tokens} tokens"] = {
                name: measured(kind.open(Path(scratch) / f"{name}-{tokens}", MODEL), files)
                for name, kind in (("one process", Index), ("two workers", ClusterIndex))
            }
            print(json.dumps(results, indent=2), flush=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
