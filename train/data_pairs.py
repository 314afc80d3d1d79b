"""Batches for retrieval: queries, documents, and which document answers which query.

Two kinds of query share one form. Labelled queries come with the data. Passages are cut out of a document, which is
then the document without them: pairs from raw text. A batch is a function of (seed, step, rank) alone.
"""

from dataclasses import dataclass

import numpy as np
import torch

KEEP_IDF = 4.0  # a query token of this inverse document frequency or more is kept with the largest probability
KEEP_RANGE = 0.1, 0.9


@dataclass
class PairData:
    """Tokenised documents and labelled queries.

    Args:
        documents: token ids, without special tokens, untruncated.
        queries: (token ids, indices of the documents that answer).
        idf: (vocab_size,) for query dropout; None keeps every query token.
    """

    documents: list[np.ndarray]
    queries: list[tuple[np.ndarray, list[int]]]
    cls_id: int
    sep_id: int
    pad_id: int
    idf: np.ndarray | None = None

    def batch(self, step: int, settings, *, seed: int, rank: int = 0) -> dict:
        """One step's group: every query is set against every document.

        Args:
            settings: documents_per_batch, document_tokens, passages_per_document, passage_tokens (shortest, longest),
                passage_share (share of the steps whose queries are passages).

        Returns:
            queries, documents: {input_ids, attention_mask} padded on the right; relevant: (Q, D) bool.
        """
        rng = np.random.default_rng([seed, step, rank])
        if rng.random() < settings.passage_share or not self.queries:
            chosen = rng.choice(
                len(self.documents), min(settings.documents_per_batch, len(self.documents)), replace=False
            )
            queries, documents, answers = self._cut_passages(chosen, settings, rng)
        else:
            chosen = rng.choice(len(self.queries), min(settings.documents_per_batch, len(self.queries)), replace=False)
            queries = [self.queries[i][0][: settings.document_tokens - 2] for i in chosen]
            group = list(dict.fromkeys(int(rng.choice(self.queries[i][1])) for i in chosen))
            documents = [self._window(self.documents[i], settings.document_tokens - 2, rng) for i in group]
            answers = [[d for d, i in enumerate(group) if i in self.queries[query][1]] for query in chosen]
        if not queries:
            raise ValueError("no passage could be cut: the documents are too short; set data.passage_share=0")
        if self.idf is not None:
            queries = [self._drop(query, rng) for query in queries]
        relevant = torch.zeros(len(queries), len(documents), dtype=torch.bool)
        for row, positives in zip(relevant, answers, strict=True):
            row[positives] = True
        return {"queries": self.pad(queries), "documents": self.pad(documents), "relevant": relevant}

    def _cut_passages(self, chosen, settings, rng):
        """Passages of each document, each from a part of its own, and the document without them."""
        queries, documents, answers = [], [], []
        shortest, longest = settings.passage_tokens
        for index in chosen:
            extra = settings.passages_per_document * longest
            window = self._window(self.documents[index], settings.document_tokens - 2 + extra, rng)
            parts = np.array_split(window, settings.passages_per_document)
            rest = []
            for part in parts:
                size = min(int(rng.integers(shortest, longest + 1)), len(part) // 2)
                start = int(rng.integers(0, len(part) - size + 1))
                rest += [part[:start], part[start + size :]]
                if size:
                    queries.append(part[start : start + size])
                    answers.append([len(documents)])
            documents.append(np.concatenate(rest)[: settings.document_tokens - 2])
        return queries, documents, answers

    def _window(self, document: np.ndarray, tokens: int, rng) -> np.ndarray:
        start = int(rng.integers(0, max(len(document) - tokens, 0) + 1))
        return document[start : start + tokens]

    def _drop(self, query: np.ndarray, rng) -> np.ndarray:
        """Query dropout: rare words are kept more often than common ones; at least one token stays."""
        keep = rng.random(len(query)) < (self.idf[query] / KEEP_IDF).clip(*KEEP_RANGE)
        return query[keep] if keep.any() else query[:1]

    def pad(self, rows: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """[CLS] row [SEP], padded on the right to the longest: input_ids and attention_mask (B, L) int64."""
        longest = max(map(len, rows)) + 2
        ids = np.full((len(rows), longest), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for target, filled, row in zip(ids, mask, rows, strict=True):
            target[: len(row) + 2] = [self.cls_id, *row, self.sep_id]
            filled[: len(row) + 2] = 1
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
