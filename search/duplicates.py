"""Near-duplicates by MinHash: documents that share most of their word sequences (Broder 1997)."""

import re
import zlib

import numpy as np

WORDS = 5  # of a sequence
HASHES = 128
BANDS = 32  # of hashes; two documents are compared where one band is equal
MEMBERS = 20  # of the documents with one band that all others with it are compared to
PRIME = np.uint64(2**61 - 1)
_rng = np.random.default_rng(0)
MULTIPLIERS = _rng.integers(1, 2**32, (HASHES, 1), dtype=np.uint64)
OFFSETS = _rng.integers(0, 2**32, (HASHES, 1), dtype=np.uint64)


def minhash(text: str) -> np.ndarray:
    """Return (HASHES,) uint32: equal entries of two texts are, on average, the share of their sequences in both."""
    words = [zlib.crc32(word.encode()) for word in re.findall(r"\w+", text.lower())]
    words = np.array(words + [0] * (WORDS - len(words)), dtype=np.uint64)
    count = len(words) - WORDS + 1
    sequences = np.zeros(count, dtype=np.uint64)
    for place in range(WORDS):
        sequences = (sequences * np.uint64(0x9E3779B97F4A7C15)) ^ words[place : place + count]
    sequences = np.unique(sequences >> np.uint64(32) ^ sequences & np.uint64(0xFFFFFFFF))
    lowest = [(sequences * a + b) % PRIME for a, b in zip(MULTIPLIERS, OFFSETS, strict=True)]
    return (np.array([row.min() for row in lowest]) & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def similar_pairs(ids: list[str], hashes: np.ndarray, least: float) -> list[tuple[str, str, float]]:
    """Return the pairs of documents whose hashes (n, HASHES) agree in at least the part `least`, most alike first."""
    pairs: set[tuple[int, int]] = set()
    for band in np.split(hashes, BANDS, axis=1):
        _, group = np.unique(band, axis=0, return_inverse=True)
        order = np.argsort(group, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
            pairs |= {(int(a), int(b)) for place, a in enumerate(members[:MEMBERS]) for b in members[place + 1 :]}
    found = [(ids[a], ids[b], float((hashes[a] == hashes[b]).mean())) for a, b in sorted(pairs)]
    return sorted((pair for pair in found if pair[2] >= least), key=lambda pair: -pair[2])
