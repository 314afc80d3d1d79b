"""What a task is like: how long its texts are (Table 11, Figures 5 and 6), where in its document an answer begins
(Table 12), and scores by both (Table 24)."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from m2bert.terminal import one_line

from ..statistics import align
from ..tasks.schema import RetrievalTask
from .shared import origin, summarize

BUCKETS = ("<2k", "2k-8k", "8k-32k", ">32k")
# The lengths for which the paper has a model each. A text of exactly so many tokens is read whole by that model, so it
# belongs to the bucket below; the paper does not say.
BOUNDARIES_TOKENS = (2_048, 8_192, 32_768)
QUARTERS = (1, 2, 3, 4)
SPREAD = (("mean", np.mean, float), ("median", np.median, float), ("max", np.max, int))
EXAMPLE_CHARS = 400
FIRST_EDGE_TOKENS = 16
BATCH_TEXTS = 32  # long documents: a batch's encodings take more memory than its texts

TokenCounter = Callable[[list[str]], np.ndarray]  # n texts -> (n,) int


def load_token_counter(name: str) -> TokenCounter:
    """Return a function that counts the tokens of texts, without special tokens or truncation.

    Args:
        name: a `tokenizer.json`, a folder that holds one (a model folder does), or a Hub id.
    """
    from tokenizers import Tokenizer

    path = Path(name).expanduser()
    try:
        if not path.exists():
            from huggingface_hub import hf_hub_download  # slow to import

            path = hf_hub_download(name, "tokenizer.json")
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json" if Path(path).is_dir() else path))
    except Exception as error:  # the library raises nothing narrower
        expected = "a tokenizer.json, a folder with one or a model on the Hub"
        raise ValueError(f"tokenizer {name!r} cannot be read ({one_line(error)}); name {expected}") from error
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


def describe_lengths(task: RetrievalTask, count_tokens: TokenCounter, tokenizer_name: str) -> dict:
    """Measure queries and documents in characters and tokens, with a first example (Tables 13 and 16).

    Returns:
        A record of kind "lengths". Its histogram has the same edges for every task, so that tasks share an axis.
    """
    queries, documents = list(task.queries.values()), list(task.documents.values())
    qid, answer = next((qid, found[0]) for qid in task.queries if (found := task.answers(qid)))
    answers = [sum(grade > 0 for grade in judged.values()) for judged in task.qrels.values()]
    chars, tokens = np.array([len(text) for text in documents]), count_tokens(documents)
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
            **{f"{name}_chars": kind(find(chars)) for name, find, kind in SPREAD},
            **{f"{name}_tokens": kind(find(tokens)) for name, find, kind in SPREAD},
            "histogram": token_histogram(tokens),
        },
        "answers_per_query": sum(answers) / len(answers),
        "example": {"query": task.queries[qid][:EXAMPLE_CHARS], "passage": task.documents[answer][:EXAMPLE_CHARS]},
    }


def token_histogram(tokens: np.ndarray) -> dict[str, list[int]]:
    """Count texts by length: counts (B,) between edges (B + 1,), each half an octave above the last, the first 0.

    A text on an edge counts above it.
    """
    octaves = math.log2(max(int(tokens.max()), FIRST_EDGE_TOKENS) / FIRST_EDGE_TOKENS)
    steps = math.floor(2 * octaves) + 2  # the last edge lies above the longest text
    edges = [0, *(round(FIRST_EDGE_TOKENS * 2 ** (step / 2)) for step in range(steps))]
    return {"edges": edges, "counts": np.histogram(tokens, edges)[0].tolist()}


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


def by_length(query_scores: dict[str, float], answer_tokens: dict[str, int]) -> list[dict]:
    """Return nDCG@10 (0 to 1) by the length of the answer's document, one row for every bucket of Table 24.

    Args:
        answer_tokens: {qid: tokens of the document that answers it}; 2048 are in "<2k", 2049 in "2k-8k". A query that
            is not there is left out.
    """
    buckets = {
        qid: BUCKETS[int(np.searchsorted(BOUNDARIES_TOKENS, answer_tokens[qid]))]
        for qid in query_scores
        if qid in answer_tokens
    }
    return _by_group("bucket", BUCKETS, query_scores, buckets)


def describe_spans(task: RetrievalTask) -> dict:
    """Find the quartiles of the answers' beginnings in characters, and how many lie in each quarter of their document.

    Returns:
        A record of kind "spans". `mean_document_chars` is over the documents that hold these answers, each once.
    """
    if not task.positions:
        raise ValueError(
            f"task {task.name!r} does not say where answers begin; give its queries a column `position` "
            "(0 to 1, the share of the document before it) or `answer` (text that the passage holds)"
        )
    answers = {qid: task.answers(qid)[0] for qid in task.positions}
    begins = [share * len(task.documents[answers[qid]]) for qid, share in task.positions.items()]  # in characters
    document_chars = [len(task.documents[pid]) for pid in dict.fromkeys(answers.values())]
    quarters = [quarter(share) for share in task.positions.values()]
    return {
        "kind": "spans",
        **origin(task),
        "positions": {
            "count": len(begins),
            "quartiles": np.percentile(begins, [25, 50, 75]).round().tolist(),
            "mean_document_chars": float(np.mean(document_chars)),
        },
        "quarters": [quarters.count(number) for number in QUARTERS],
    }


def quarter(position: float) -> int:
    """Return the quarter, 1 to 4, of a share (0 to 1) of a document; a boundary belongs to the later one."""
    return min(int(position * 4), 3) + 1


def format_spans(records: list[dict]) -> str:
    """Return the records as a table for the terminal."""
    header = ["task", "answers", "1st quartile", "2nd", "3rd", "mean document", "answers by quarter"]
    rows = []
    for record in records:
        positions = record["positions"]
        numbers = [positions["count"], *positions["quartiles"], positions["mean_document_chars"]]
        quarters = " ".join(map(str, record["quarters"]))
        rows.append([record["task"], *(f"{number:,.0f}" for number in numbers), quarters])
    return align(header, rows) + "\n(beginnings in characters)"


def ndcg_by_quarter(query_scores: dict[str, float], positions: dict[str, float]) -> list[dict]:
    """Return nDCG@10 (0 to 1) by the quarter of the document in which the answer begins, one row for every quarter.

    Args:
        positions: {qid: share of the document before the answer}; a query that is not there is left out.
    """
    quarters = {qid: quarter(position) for qid, position in positions.items() if qid in query_scores}
    return _by_group("quarter", QUARTERS, query_scores, quarters)


def _by_group(kind: str, names: tuple, query_scores: dict[str, float], groups: dict[str, str | int]) -> list[dict]:
    """Return a row for every group, by the group of each query."""
    members = {name: [query_scores[qid] for qid, group in groups.items() if group == name] for name in names}
    return [{kind: name, **summarize(scores)} for name, scores in members.items()]
