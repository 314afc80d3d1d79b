"""Development scores: nDCG@10 of whole tasks, as the evaluation would score them, shared by all processes."""

import logging

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from ..grad_cache import encode_shared
from .batches import TokenTask, wrap
from .ndcg import ndcg_at_k

logger = logging.getLogger(__name__)

METRIC = "development_ndcg_at_10"
QUERIES_AT_ONCE = 256  # rows of the score matrix in memory


class Development:
    """Scores a model on development tasks.

    Args:
        tasks: at least one.
        document_tokens, query_tokens: of the longest text, special tokens included; longer ones are cut to their first.
        special: ids of [CLS] and [SEP].
        batch_tokens: padded tokens of one forward.
    """

    def __init__(
        self,
        tasks: list[TokenTask],
        document_tokens: int,
        query_tokens: int,
        special: tuple[int, int],
        pad_id: int,
        batch_tokens: int,
    ):
        self.tasks, self.pad_id, self.batch_tokens = tasks, pad_id, batch_tokens
        self.queries = self._cut("queries", query_tokens, special)
        self.documents = self._cut("documents", document_tokens, special)

    def _cut(self, what: str, limit: int, special: tuple[int, int]) -> list[list[np.ndarray]]:
        """The first tokens of every text of each task; what is cut is counted."""
        texts = [getattr(task, what) for task in self.tasks]
        lengths = [len(row) + 2 for rows in texts for row in rows]
        long = sum(length > limit for length in lengths)
        logger.info("development: %d of %d %s are cut to %d tokens", long, len(lengths), what, limit)
        return [[wrap(row[: limit - 2], special) for row in rows] for rows in texts]

    def __call__(self, accelerator: Accelerator, model: torch.nn.Module) -> dict[str, float]:
        """{"development_ndcg_at_10": mean over tasks, and of several tasks each as "development_ndcg_at_10/TASK"}."""
        scores = {}
        for task, queries, documents in zip(self.tasks, self.queries, self.documents, strict=True):
            query_vectors, document_vectors = (
                F.normalize(encode_shared(accelerator, model, rows, self.batch_tokens, self.pad_id).float(), dim=-1)
                for rows in (queries, documents)
            )
            values = []
            for first in range(0, len(queries), QUERIES_AT_ONCE):
                chosen = slice(first, first + QUERIES_AT_ONCE)
                relevant = torch.zeros(len(queries[chosen]), len(documents), dtype=torch.bool)
                for row, answers in zip(relevant, task.answers[chosen], strict=True):
                    row[answers] = True
                cosine = query_vectors[chosen] @ document_vectors.T
                values += ndcg_at_k(cosine, relevant.to(cosine.device), task.pids).tolist()
            scores[f"{METRIC}/{task.name}"] = float(np.mean(values))
        return {METRIC: float(np.mean(list(scores.values())))} | (scores if len(scores) > 1 else {})
