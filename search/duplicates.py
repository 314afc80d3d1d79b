"""Near-duplicates: documents that share many of their word sequences, found by MinHash (Broder 1997)."""

import re

import numpy as np

from m2bert.eval.tasks.overlap import hashed_runs

WORDS = 5  # of a sequence
HASHES = 128
BANDS = 64  # of hashes; two documents are compared where one band is equal: 97 % of those that share 0.23 of theirs
NEIGHBORS = 20  # of the documents with an equal band that each is compared with
MULTIPLIERS = np.random.default_rng(0).integers(0, 2**64, HASHES, dtype=np.uint64) | np.uint64(1)


def sequences(text: str) -> np.ndarray:
    """Return the different sequences of WORDS words of a text, in lower case, as numbers (n,) uint64."""
    words = re.findall(r"\w+", text.lower())
    return np.unique(hashed_runs(words + [""] * (WORDS - len(words)))[WORDS])


def minhash(found: np.ndarray) -> np.ndarray:
    """Return (HASHES,) uint32: equal entries of two texts are, on average, the share of their sequences in both."""
    return np.array([(found * each >> np.uint64(32)).min() for each in MULTIPLIERS], dtype=np.uint32)


def share(sequences: np.ndarray, others: np.ndarray) -> float:
    """Return which part of all sequences of two texts is in both."""
    both = len(np.intersect1d(sequences, others, assume_unique=True))
    return both / (len(sequences) + len(others) - both)


def similar_pairs(hashes: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Return the places of pairs of documents whose hashes (n, HASHES) agree in at least the part `least`."""
    pairs: set[tuple[int, int]] = set()
    for band in np.split(hashes, BANDS, axis=1):
        order = np.lexsort(band.T)
        for step in range(1, NEIGHBORS + 1):
            same = np.flatnonzero((band[order[:-step]] == band[order[step:]]).all(axis=1))
            if not len(same):
                break
            found = np.sort([order[same], order[same + step]], axis=0).T
            alike = (hashes[found[:, 0]] == hashes[found[:, 1]]).mean(axis=1) >= least
            pairs.update(map(tuple, found[alike].tolist()))
    return sorted(pairs)
