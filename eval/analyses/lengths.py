"""How long the texts of a task are (Table 11, Figures 5 and 6), and scores by length (Table 24)."""

import math

import numpy as np

from ..statistics import summarise
from ..tasks.schema import RetrievalTask
from .token_counter import TokenCounter

BUCKETS = ("<2k", "2k-8k", "8k-32k", ">32k")
# The lengths for which the paper has a model each. A text of exactly so many tokens is read whole by that model, so it
# belongs to the bucket below; the paper does not say.
BOUNDARIES_TOKENS = (2_048, 8_192, 32_768)
EXAMPLE_CHARS = 400
FIRST_EDGE_TOKENS = 16


def describe_lengths(task: RetrievalTask, count_tokens: TokenCounter, tokenizer_name: str) -> dict:
    """Lengths of queries and documents in characters and tokens, with a first example (Tables 13 and 16).

    Args:
        count_tokens: texts -> (n,) tokens of each; see `load_token_counter`.
        tokenizer_name: what the record says they were counted with.

    Returns:
        A record of kind "lengths". Its histogram has the same edges for every task, so that tasks share an axis.
    """
    queries, documents = list(task.queries.values()), list(task.documents.values())
    query_tokens, document_tokens = count_tokens(queries), count_tokens(documents)
    query_chars = np.array([len(text) for text in queries])
    document_chars = np.array([len(text) for text in documents])
    qid = next(iter(task.queries))
    answers = [sum(grade > 0 for grade in judged.values()) for judged in task.qrels.values()]
    return {
        "kind": "lengths",
        "task": task.name,
        "split": task.split,
        "source": task.source,
        "revision": task.revision,
        "data_fingerprint": task.fingerprint,
        "tokenizer": tokenizer_name,
        "queries": {
            "count": len(queries),
            "mean_chars": float(query_chars.mean()),
            "mean_tokens": float(query_tokens.mean()),
        },
        "documents": {
            "count": len(documents),
            **_spread(document_chars, "chars"),
            **_spread(document_tokens, "tokens"),
            "histogram": token_histogram(document_tokens),
        },
        "answers_per_query": sum(answers) / len(answers),
        "example": {
            "query": task.queries[qid][:EXAMPLE_CHARS],
            "passage": task.documents[_first_answer(task, qid)][:EXAMPLE_CHARS],
        },
    }


def token_histogram(tokens: np.ndarray) -> dict[str, list[int]]:
    """Texts by length: counts (B,) between edges (B + 1,), each half an octave above the last, the first 0.

    A text on an edge counts above it.
    """
    octaves = math.log2(max(int(tokens.max()), FIRST_EDGE_TOKENS) / FIRST_EDGE_TOKENS)
    steps = math.floor(2 * octaves) + 2  # the last edge lies above the longest text
    edges = [0, *(round(FIRST_EDGE_TOKENS * 2 ** (step / 2)) for step in range(steps))]
    return {"edges": edges, "counts": np.histogram(tokens, edges)[0].tolist()}


def bucket(tokens: int) -> str:
    """The bucket of Table 24 for a document of so many tokens: up to 2048 is "<2k", more than 32768 ">32k"."""
    return BUCKETS[int(np.searchsorted(BOUNDARIES_TOKENS, tokens))]


def by_length(query_scores: dict[str, float], answer_tokens: dict[str, int]) -> list[dict]:
    """nDCG@10 by the length of the answer's document, one row for every bucket (Table 24).

    Args:
        query_scores: {qid: 0 to 1}.
        answer_tokens: {qid: tokens of the document that answers it}, for each of them.
    """
    groups: dict[str, list[float]] = {name: [] for name in BUCKETS}
    for qid, score in query_scores.items():
        groups[bucket(answer_tokens[qid])].append(score)
    return [{"bucket": name, **summarise(scores)} for name, scores in groups.items()]


def _spread(lengths: np.ndarray, unit: str) -> dict[str, float]:
    return {
        f"mean_{unit}": float(lengths.mean()),
        f"median_{unit}": float(np.median(lengths)),
        f"max_{unit}": int(lengths.max()),
    }


def _first_answer(task: RetrievalTask, qid: str) -> str:
    return next(pid for pid, grade in task.qrels[qid].items() if grade > 0)
