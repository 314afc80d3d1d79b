"""Development scores: nDCG@10 of whole tasks, as the evaluation would score them, shared by all processes."""

import logging

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from ..grad_cache import encode_shared
from .tokens import TokenTask, wrap

logger = logging.getLogger(__name__)

METRIC = "development_ndcg_at_10"


class Development:
    """Score a model on development tasks.

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
        """Return the first tokens of every text of each task, and log how many texts are cut."""
        texts = [getattr(task, what) for task in self.tasks]
        lengths = [len(row) + 2 for rows in texts for row in rows]
        long = sum(length > limit for length in lengths)
        logger.info("development: %d of %d %s are cut to %d tokens", long, len(lengths), what, limit)
        return [[wrap(row[: limit - 2], special) for row in rows] for rows in texts]

    def __call__(self, accelerator: Accelerator, model: torch.nn.Module) -> dict[str, float]:
        """Return {"development_ndcg_at_10": mean over tasks}, and of several tasks each as
        "development_ndcg_at_10/TASK"."""
        # their packages may be missing where nothing is measured
        from m2bert.eval.search import ExactSearch, score_ranking

        scores = {}
        for task, queries, documents in zip(self.tasks, self.queries, self.documents, strict=True):
            query_vectors, document_vectors = (
                F.normalize(encode_shared(accelerator, model, rows, self.batch_tokens, self.pad_id).float(), dim=-1)
                for rows in (queries, documents)
            )
            search = ExactSearch(task.pids, len(queries))
            one_each = np.ones(len(documents), dtype=np.int64)
            search.add_vectors(query_vectors.cpu().numpy(), task.pids, document_vectors.cpu().numpy(), one_each)
            qids = [str(number) for number in range(len(queries))]
            qrels = {
                qid: {task.pids[answer]: 1 for answer in answers}
                for qid, answers in zip(qids, task.answers, strict=True)
            }
            values = score_ranking(search.run(qids), qrels)
            scores[f"{METRIC}/{task.name}"] = float(np.mean(list(values.values())))
        return {METRIC: float(np.mean(list(scores.values())))} | (scores if len(scores) > 1 else {})
