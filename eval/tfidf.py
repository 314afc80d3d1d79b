"""TF-IDF under a random projection: a baseline without a model, with one dense vector a text."""

from typing import Self

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from .encoders.protocol import Task


class TfidfProjection:
    """TF-IDF times a Gaussian random matrix: how far bare word counts get in `width` dimensions.

    Call `fit` with the documents of the task first.
    """

    def __init__(self, width: int, seed: int = 0):
        if width < 1:
            raise ValueError(f"width={width} is no embedding size; it must be at least 1")
        self.width = width
        self.seed = seed
        self.name = f"tfidf-rp:{width}"
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")

    def fit(self, documents: list[str]) -> Self:
        """Learn vocabulary and document frequencies.

        Raises:
            ValueError: no document has a word.
        """
        try:
            self._vectorizer.fit(documents)
        except ValueError as error:  # scikit-learn's "empty vocabulary"
            raise ValueError(f"none of {len(documents)} documents has a word to count; check the passages") from error
        return self

    def tfidf(self, texts: list[str]) -> scipy.sparse.csr_matrix:
        """Return TF-IDF rows (n, vocabulary) before the projection."""
        return self._vectorizer.transform(texts)

    def encode(self, texts: list[str], task: Task) -> np.ndarray:
        """Unit rows (n, width) float32; a text without a known word becomes the zero vector."""
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        return project(self.tfidf(texts), self.width, self.seed)


def project(rows: scipy.sparse.csr_matrix, width: int, seed: int) -> np.ndarray:
    """Return unit rows (n, width) of `rows` (n, vocabulary) times a matrix of N(0, 1) / sqrt(width)."""
    matrix = np.random.default_rng(seed).standard_normal((rows.shape[1], width), dtype=np.float32)
    return normalize(rows.astype(np.float32) @ matrix / np.float32(width**0.5)).astype(np.float32)
