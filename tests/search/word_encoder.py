"""An encoder without a network: the vector of a text is the sum of its words' vectors. It stands in for `Encoder`."""

import re
import zlib
from functools import cache
from types import SimpleNamespace

import numpy as np

from m2bert.search.encoder import EncodedDocument

WINDOW = 64  # words


@cache
def word_vector(model, word):
    seed = [zlib.crc32(model.encode()), zlib.crc32(word.encode())]
    return np.random.default_rng(seed).normal(size=32)


class WordEncoder:
    dimensions, max_tokens = 32, WINDOW
    base = SimpleNamespace(parts_problem="a window has one vector")

    def __init__(self, model, device=None):
        self.name = str(model)
        self.fingerprint = f"fingerprint of {model}"
        self.encoded = 0  # documents

    def _vector(self, words):
        rows = [word_vector(self.name, word) for word in words]
        vector = np.sum(rows, axis=0) if rows else np.ones(32)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def count_tokens(self, texts):
        return np.array([len(text.split()) for text in texts], dtype=np.int64)

    def encode_queries(self, texts):
        return np.array([self._vector(text.lower().split()) for text in texts])

    def encode_documents(self, texts, vectors=16):
        self.encoded += len(texts)
        found = []
        for text in texts:
            places = [match.span() for match in re.finditer(r"\S+", text)][::WINDOW]
            starts = [0, *(start for start, _ in places[1:])]
            spans = np.array([starts, [*starts[1:], len(text)]], dtype=np.int64).T
            rows = np.array([self._vector(text[start:end].lower().split()) for start, end in spans])
            found.append(EncodedDocument(rows, spans, len(text.split())))
        return found
