"""Do texts of one source lie together? A t-SNE picture (Figure 3), and the number that a picture cannot give."""

from pathlib import Path

import numpy as np

from ..statistics import align, points

NEIGHBOURS = 10
PERPLEXITY = 30.0  # t-SNE's usual value; few texts get a third of the neighbours that each has
MIN_TEXTS = 8


def parse_sources(arguments: list[str]) -> dict[str, Path]:
    """Return {name: path} of arguments "NAME=PATH", each name once."""
    sources: dict[str, Path] = {}
    for argument in arguments:
        name, _, path = argument.partition("=")
        if not name or not path:
            raise ValueError(f"source {argument!r} must have the form NAME=PATH, as in web=data/web")
        if name in sources:
            raise ValueError(f"source {name!r} is given twice, as {sources[name]} and {path}; rename one")
        sources[name] = Path(path).expanduser()
    return sources


def cluster_sources(vectors: np.ndarray, sources: list[str], about: dict, seed: int = 0) -> dict:
    """Measure how well the vectors of texts tell their sources apart.

    Args:
        vectors: (n, d) float32 unit rows.
        sources: the source of each row.
        about: which system made them; see `provenance`.

    Returns:
        A record of kind "clusters": points [x, y, index of the source] for the picture, and the accuracy of naming a
        text's source by its nearest neighbours among the others, in the space of the vectors and not of the picture.
    """
    from sklearn.manifold import TSNE

    names = list(dict.fromkeys(sources))
    labels = np.array([names.index(source) for source in sources])
    if len(labels) < MIN_TEXTS or len(names) < 2:
        counted = f"{len(labels)} texts of {len(names)} source(s)"
        raise ValueError(f"{counted} make no picture; give at least two sources and {MIN_TEXTS} texts")
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
    rows = []
    for record in records:
        cut = "-" if record["truncated_texts"] is None else str(record["truncated_texts"])
        shares = [points(record["knn"][name]) for name in ("accuracy", "chance")]
        rows.append([record["system"], str(len(record["points"])), cut, str(len(record["sources"])), *shares])
    return align(["system", "texts", "cut", "sources", "neighbours' accuracy", "chance"], rows)
