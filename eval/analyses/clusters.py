"""Do texts of one source lie together? A t-SNE picture (Figure 3), and the number that a picture cannot give."""

from pathlib import Path

import numpy as np

from ..statistics import align, points

NEIGHBORS = 10
PERPLEXITY = 30.0  # t-SNE's usual value; few texts get a third of the neighbors that each has


def parse_sources(arguments: list[str]) -> dict[str, Path]:
    """Return {name: path} of arguments "NAME=PATH", each name once, two at least."""
    sources = dict(argument.partition("=")[::2] for argument in arguments)
    if len(sources) < max(2, len(arguments)) or not all(map(all, sources.items())):
        raise ValueError(f"sources {', '.join(arguments)} must be two or more of the form NAME=PATH, each name once")
    return {name: Path(path).expanduser() for name, path in sources.items()}


def cluster_sources(vectors: np.ndarray, sources: list[str], about: dict, seed: int = 0) -> dict:
    """Measure how well the vectors of texts tell their sources apart.

    Args:
        vectors: (n, d) float32 unit rows.
        sources: the source of each row.
        about: which system made them; see `provenance`.

    Returns:
        A record of kind "clusters": points [x, y, index of the source] for the picture, and the accuracy of naming a
        text's source by its nearest neighbors among the others, in the space of the vectors and not of the picture.
    """
    from sklearn.manifold import TSNE

    names = list(dict.fromkeys(sources))
    labels = np.array([names.index(source) for source in sources])
    counts = np.bincount(labels)
    perplexity = min(PERPLEXITY, (len(labels) - 1) / 3)
    picture = TSNE(perplexity=perplexity, init="pca", metric="cosine", random_state=seed).fit_transform(vectors)
    places = zip(picture, labels.tolist(), strict=True)
    neighbors = min(NEIGHBORS, len(labels) - 1)
    return {
        "kind": "clusters",
        **about,
        "sources": dict(zip(names, counts.tolist(), strict=True)),
        "knn": {
            "k": neighbors,
            "accuracy": knn_accuracy(vectors, labels, neighbors),
            "chance": float(counts.max() / counts.sum()),  # of always naming the largest source
        },
        "points": [[*(round(float(x), 3) for x in place), label] for place, label in places],
        "perplexity": perplexity,
        "seed": seed,
    }


def knn_accuracy(vectors: np.ndarray, labels: np.ndarray, neighbors: int) -> float:
    """Return the share of rows whose nearest others, by cosine, have mostly their own label; a nearer one breaks a tie.

    Args:
        vectors: (n, d).
        labels: (n,) int from 0.
    """
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=neighbors, metric="cosine").fit(vectors)
    nearest = index.kneighbors(return_distance=False)  # (n, k): of the rows themselves, each without itself
    votes = np.zeros((len(labels), labels.max() + 1))
    for place in range(neighbors):
        votes[np.arange(len(labels)), labels[nearest[:, place]]] += 1 - 1e-6 * place
    return float((votes.argmax(axis=1) == labels).mean())


def format_clusters(records: list[dict]) -> str:
    """Return the records as a table for the terminal."""
    rows = []
    for record in records:
        cut = "-" if record["truncated_texts"] is None else str(record["truncated_texts"])
        shares = [points(record["knn"][name]) for name in ("accuracy", "chance")]
        rows.append([record["system"], str(len(record["points"])), cut, str(len(record["sources"])), *shares])
    return align(["system", "texts", "cut", "sources", "neighbors' accuracy", "chance"], rows)
