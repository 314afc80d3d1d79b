"""Retrieval tasks as token ids."""

import hashlib
import logging
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from m2bert.eval.tasks.locov1 import RetrievalTask

from ..tokenizer import encode_all
from .data import Negatives

logger = logging.getLogger(__name__)

TEXTS_AT_ONCE = 1000


@dataclass(frozen=True)
class TokenTask:
    """A task as token ids, without special tokens and untruncated. Documents are known by their index.

    Attributes:
        answers: of each query, the documents that answer it.
        negatives: of each query, the documents given as negatives, best first; may be empty.
    """

    name: str
    pids: list[str]
    documents: list[np.ndarray]
    queries: list[np.ndarray]
    answers: list[list[int]]
    negatives: list[list[int]]


def tokenise(
    tokenizer: PreTrainedTokenizerBase, task: RetrievalTask, negatives: Negatives | None = None, show: bool = True
) -> TokenTask:
    """Tokenise a task.

    Args:
        negatives: {qid: pids}; documents that the task does not hold (set aside for development) are left out.
        show: a progress bar, where there is enough to wait for.
    """
    index, given = {pid: i for i, pid in enumerate(task.documents)}, negatives or {}
    return TokenTask(
        name=task.name,
        pids=list(task.documents),
        documents=tokenise_texts(tokenizer, list(task.documents.values()), f"{task.name} documents", show),
        queries=tokenise_texts(tokenizer, list(task.queries.values()), f"{task.name} queries", show),
        answers=[[index[pid] for pid in answers] for answers in task.qrels.values()],
        negatives=[[index[pid] for pid in given.get(qid, ()) if pid in index] for qid in task.qrels],
    )


def tokenise_texts(tokenizer, texts: list[str], what: str, show: bool) -> list[np.ndarray]:
    """Token ids of each text."""
    rows = []
    with tqdm(total=len(texts), desc=what, unit="text", disable=not show or len(texts) <= TEXTS_AT_ONCE) as progress:
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            rows += encode_all(tokenizer, texts[first : first + TEXTS_AT_ONCE])
            progress.update(len(rows) - progress.n)
    return rows


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the tokens and their ids."""
    return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def query_limit(settings) -> int:
    """Tokens of the longest query, special tokens included."""
    return settings.query_tokens or settings.document_tokens


def wrap(row: np.ndarray, special: tuple[int, int]) -> np.ndarray:
    """[CLS] row [SEP]."""
    return np.concatenate([special[:1], row, special[1:]]).astype(np.int64)


def report_tasks(tasks: list[TokenTask], settings):
    """Log how many texts are longer than what is read of them, special tokens included, and how many queries have
    fewer given negatives than are used.

    Args:
        settings: document_tokens, document_window, query_tokens (None: as documents), passage_share, passage_tokens,
            negatives.
    """
    limit = settings.document_tokens
    documents = [document for task in tasks for document in task.documents]
    long = sum(len(document) + 2 > limit for document in documents)
    if long:
        what = "cut to their first tokens" if settings.document_window == "first" else "read in random windows"
        logger.warning("%d of %d documents exceed data.document_tokens=%d: %s", long, len(documents), limit, what)
    key, limit = "document_tokens" if settings.query_tokens is None else "query_tokens", query_limit(settings)
    long = sum(len(query) + 2 > limit for task in tasks for query in task.queries)
    if long:
        logger.warning("%d queries are cut to data.%s=%d", long, key, limit)
    if settings.passage_share and settings.passage_tokens[1] + 2 > limit:
        logger.warning("passages of more than %d tokens are cut to data.%s=%d", limit - 2, key, limit)
    given = [len(negatives) for task in tasks for negatives in task.negatives]
    if any(given):
        short = sum(count < settings.negatives for count in given)
        logger.info("%d queries have given negatives; for %d the rest is random", sum(map(bool, given)), short)
