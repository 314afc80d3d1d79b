"""Do texts of one source lie together? A t-SNE picture (Figure 3), and the number that a picture cannot give."""

import logging
import random
from pathlib import Path

import numpy as np

from m2bert.files import visible

from ..tables import align, points
from ..tasks.schema import read_table, with_texts

logger = logging.getLogger(__name__)

NEIGHBOURS = 10
PERPLEXITY = 30.0  # t-SNE's usual value; few texts get a third of the neighbours that each has
MIN_TEXTS = 8
TEXT_COLUMNS = ("text", "passage")


def parse_sources(arguments: list[str]) -> dict[str, Path]:
    """Return {name: path} of arguments "NAME=PATH".

    Raises:
        ValueError: one has another form, or two have the same name.
    """
    sources: dict[str, Path] = {}
    for argument in arguments:
        name, _, path = argument.partition("=")
        if not name or not path:
            raise ValueError(f"source {argument!r} must have the form NAME=PATH, as in web=data/web")
        if name in sources:
            raise ValueError(f"source {name!r} is given twice, as {sources[name]} and {path}; rename one")
        sources[name] = Path(path).expanduser()
    return sources


def read_source(path: Path, count: int, split: str, seed: int = 0) -> list[str]:
    """Draw at most `count` texts at random; empty ones are left out.

    Args:
        path: a parquet file with a column `text` or `passage`; a folder of such files; one of folders that each have
            SPLIT.parquet; or a task's folder, of which documents/SPLIT.parquet is read.
        split: of a folder that has splits.

    Raises:
        ValueError: count < 1, there is no such file, it has no such column, or it holds no text.
    """
    if count < 1:
        raise ValueError(f"texts={count} draws none from {path}; it must be at least 1")
    rows = [text for file in _files(path, split) for text in _column(file)]
    texts = [text for text in rows if text and text.strip()]
    if not texts:
        raise ValueError(f"source {path} holds no text; choose another path")
    if len(texts) < len(rows):
        logger.warning("%s: %d of %d texts are empty and are left out", path, len(rows) - len(texts), len(rows))
    return random.Random(seed).sample(texts, min(count, len(texts)))


def _files(path: Path, split: str) -> list[Path]:
    for file in (path, path / "documents" / f"{split}.parquet", path / f"{split}.parquet"):
        if file.is_file():
            return [file]
    files = visible(path, f"*/{split}.parquet") or visible(path, "*.parquet")
    if not files:
        raise ValueError(f"source {path} is no parquet file and no folder of them; give one with a column `text`")
    return files


def _column(file: Path) -> list[str | None]:
    table = read_table(file, (), optional=TEXT_COLUMNS)
    name = next((name for name in TEXT_COLUMNS if name in table.column_names), None)
    if name is None:
        raise ValueError(f"{file} has no column `text` or `passage`; add one")
    return with_texts(table, (name,), str(file))[name].to_pylist()


def cluster_sources(vectors: np.ndarray, sources: list[str], about: dict, seed: int = 0) -> dict:
    """Measure how well the vectors of texts tell their sources apart.

    Args:
        vectors: (n, d) float32 unit rows.
        sources: the source of each row.
        about: which system made them; see `provenance`.

    Returns:
        A record of kind "clusters": points [x, y, index of the source] for the picture, and the accuracy of naming a
        text's source by its nearest neighbours among the others, in the space of the vectors and not of the picture.

    Raises:
        ValueError: fewer than MIN_TEXTS texts, one source only, or vectors that are not finite.
    """
    from sklearn.manifold import TSNE

    names = list(dict.fromkeys(sources))
    labels = np.array([names.index(source) for source in sources])
    if len(labels) < MIN_TEXTS or len(names) < 2:
        raise ValueError(
            f"{len(labels)} texts of {len(names)} source(s) make no picture; give at least two sources and "
            f"{MIN_TEXTS} texts"
        )
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise ValueError(f"the vector of text {row} (from {sources[row]!r}) is not finite; the encoder is broken")
    counts = np.bincount(labels)
    perplexity = min(PERPLEXITY, (len(labels) - 1) / 3)
    picture = TSNE(perplexity=perplexity, init="pca", metric="cosine", random_state=seed).fit_transform(vectors)
    neighbours = min(NEIGHBOURS, len(labels) - 1)
    return {
        "kind": "clusters",
        **about,
        "sources": dict(zip(names, counts.tolist(), strict=True)),
        "knn": {
            "k": neighbours,
            "accuracy": knn_accuracy(vectors, labels, neighbours),
            "chance": float(counts.max() / counts.sum()),  # of always naming the largest source
        },
        "points": [
            [round(float(x), 3), round(float(y), 3), int(label)] for (x, y), label in zip(picture, labels, strict=True)
        ],
        "perplexity": perplexity,
        "seed": seed,
    }


def knn_accuracy(vectors: np.ndarray, labels: np.ndarray, neighbours: int) -> float:
    """Return the share of rows whose nearest others, by cosine, have mostly their own label; a nearer one breaks a tie.

    Args:
        vectors: (n, d).
        labels: (n,) int from 0.
    """
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=neighbours, metric="cosine").fit(vectors)
    nearest = index.kneighbors(return_distance=False)  # (n, k): of the rows themselves, each without itself
    votes = np.zeros((len(labels), labels.max() + 1))
    for place in range(neighbours):
        votes[np.arange(len(labels)), labels[nearest[:, place]]] += 1 - 1e-6 * place
    return float((votes.argmax(axis=1) == labels).mean())


def format_clusters(records: list[dict]) -> str:
    """Return the records as a table for the terminal."""
    rows = [
        [
            record["system"],
            str(len(record["points"])),
            "-" if record["truncated_texts"] is None else str(record["truncated_texts"]),
            str(len(record["sources"])),
            points(record["knn"]["accuracy"]),
            points(record["knn"]["chance"]),
        ]
        for record in records
    ]
    return align(["system", "texts", "cut", "sources", "neighbours' accuracy", "chance"], rows)
