"""How long the texts of a task are (Table 11, Figures 5 and 6), and scores by length (Table 24)."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..tables import align
from ..tasks.schema import RetrievalTask
from .shared import origin, summarise

BUCKETS = ("<2k", "2k-8k", "8k-32k", ">32k")
# The lengths for which the paper has a model each. A text of exactly so many tokens is read whole by that model, so it
# belongs to the bucket below; the paper does not say.
BOUNDARIES_TOKENS = (2_048, 8_192, 32_768)
EXAMPLE_CHARS = 400
FIRST_EDGE_TOKENS = 16
BATCH_TEXTS = 32  # long documents: a batch's encodings take more memory than its texts

TokenCounter = Callable[[list[str]], np.ndarray]  # n texts -> (n,) int


def load_token_counter(name: str) -> TokenCounter:
    """Return a function that counts the tokens of texts, without special tokens or truncation.

    Args:
        name: a `tokenizer.json`, a folder that holds one (a model folder does), or a Hub id.

    Raises:
        ValueError: there is no `tokenizer.json`, or it cannot be read.
    """
    from tokenizers import Tokenizer

    path = _tokenizer_file(name)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"tokenizer {path} cannot be read: {' '.join(str(error).split())}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count_tokens(texts: list[str]) -> np.ndarray:
        counts: list[int] = []
        batches = range(0, len(texts), BATCH_TEXTS)
        for start in tqdm(batches, desc="counting tokens", unit="batch", disable=len(batches) < 4):
            batch = texts[start : start + BATCH_TEXTS]
            counts += map(len, tokenizer.encode_batch_fast(batch, add_special_tokens=False))
        return np.array(counts, dtype=np.int64)

    return count_tokens


def _tokenizer_file(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        path /= "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"tokenizer {name!r} is a folder without tokenizer.json; give a model folder or a Hub id")
    if path.is_file():
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "tokenizer.json"))
    except (OSError, ValueError) as error:  # what the Hub's errors derive from
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"tokenizer {name!r} is no file, no folder and not on the Hub: {reason}") from error


def describe_lengths(task: RetrievalTask, count_tokens: TokenCounter, tokenizer_name: str) -> dict:
    """Measure queries and documents in characters and tokens, with a first example (Tables 13 and 16).

    Returns:
        A record of kind "lengths". Its histogram has the same edges for every task, so that tasks share an axis.
    """
    queries, documents = list(task.queries.values()), list(task.documents.values())
    qid, query = next(iter(task.queries.items()))
    answer = next(pid for pid, grade in task.qrels[qid].items() if grade > 0)
    answers = [sum(grade > 0 for grade in judged.values()) for judged in task.qrels.values()]
    document_tokens = count_tokens(documents)
    return {
        "kind": "lengths",
        **origin(task),
        "tokenizer": tokenizer_name,
        "queries": {
            "count": len(queries),
            "mean_chars": float(np.mean([len(text) for text in queries])),
            "mean_tokens": float(count_tokens(queries).mean()),
        },
        "documents": {
            "count": len(documents),
            **_spread(np.array([len(text) for text in documents]), "chars"),
            **_spread(document_tokens, "tokens"),
            "histogram": token_histogram(document_tokens),
        },
        "answers_per_query": sum(answers) / len(answers),
        "example": {"query": query[:EXAMPLE_CHARS], "passage": task.documents[answer][:EXAMPLE_CHARS]},
    }


def format_lengths(records: list[dict]) -> str:
    """Return the records as a table for the terminal."""
    header = ["task", "queries", "mean chars", "documents", "mean chars", "mean tokens", "median", "max"]
    rows = []
    for record in records:
        queries, documents = record["queries"], record["documents"]
        numbers = [queries["count"], queries["mean_chars"], documents["count"], documents["mean_chars"]]
        numbers += [documents[f"{which}_tokens"] for which in ("mean", "median", "max")]
        rows.append([record["task"], *(f"{number:,.0f}" for number in numbers)])
    return align(header, rows)


def token_histogram(tokens: np.ndarray) -> dict[str, list[int]]:
    """Count texts by length: counts (B,) between edges (B + 1,), each half an octave above the last, the first 0.

    A text on an edge counts above it.
    """
    octaves = math.log2(max(int(tokens.max()), FIRST_EDGE_TOKENS) / FIRST_EDGE_TOKENS)
    steps = math.floor(2 * octaves) + 2  # the last edge lies above the longest text
    edges = [0, *(round(FIRST_EDGE_TOKENS * 2 ** (step / 2)) for step in range(steps))]
    return {"edges": edges, "counts": np.histogram(tokens, edges)[0].tolist()}


def bucket(tokens: int) -> str:
    """Return the bucket of Table 24 of a document: up to 2048 tokens is "<2k", more than 32768 ">32k"."""
    return BUCKETS[int(np.searchsorted(BOUNDARIES_TOKENS, tokens))]


def by_length(query_scores: dict[str, float], answer_tokens: dict[str, int]) -> list[dict]:
    """Return nDCG@10 by the length of the answer's document, one row for every bucket (Table 24).

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
