"""Contamination: what a task shares with data that a model was trained on.

Texts are the same if they are equal in lower case with single spaces. A document is nearly the same if at least half of
its runs of 13 words occur in the training documents; GPT-3 was checked with runs of that length (Brown et al., 2020,
appendix C). One run in sixteen is looked at, chosen by its hash: the same runs on both sides, in a sixteenth of the
memory. A text of few words may have none of these, and is compared as a whole only.
"""

from functools import lru_cache
from hashlib import blake2b

import numpy as np
from tqdm import tqdm

from .schema import RetrievalTask

RUN_WORDS = 13
SHORTEST_QUERY_WORDS = 5  # fewer words occur together at random
SAMPLED_BITS = 4  # one run in 2 ** 4
NEAR_FRACTION = 0.5
EXAMPLES = 3
EXAMPLE_CHARS = 200
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication loses nothing; 2^64 over the golden ratio


def find_overlap(test: RetrievalTask, train: RetrievalTask) -> dict:
    """Return a record of kind "overlap", what `test` has in common with `train`.

    It has the counts of documents, of the same and of other nearly equal ones; of queries, of those that are a training
    query, and of those with SHORTEST_QUERY_WORDS words or more that occur in a training document; a few examples.
    """
    documents, queries = normalized(test.documents), normalized(test.queries)
    same_documents = same_texts(documents, normalized(train.documents))
    same_queries = same_texts(queries, normalized(train.queries))
    near_documents, quoted_queries = search_documents(documents, queries, train)
    near_documents = dict.fromkeys(sorted(near_documents - same_documents.keys()))
    examples = [
        {"what": what, "test_id": key, "train_id": other, "text": texts[key][:EXAMPLE_CHARS]}
        for what, found, texts in (
            ("same document", same_documents, test.documents),
            ("near document", near_documents, test.documents),
            ("same query", same_queries, test.queries),
            ("query in document", quoted_queries, test.queries),
        )
        for key, other in found.items()
    ]
    return {
        "kind": "overlap",
        "test": {"task": test.name, "split": test.split, "source": test.source},
        "train": {"task": train.name, "split": train.split, "source": train.source},
        "documents": {"count": len(documents), "same": len(same_documents), "near": len(near_documents)},
        "queries": {"count": len(queries), "same": len(same_queries), "in_documents": len(quoted_queries)},
        "examples": examples[:EXAMPLES],
    }


def normalized(texts: dict[str, str]) -> dict[str, str]:
    """Return {id: text in lower case with single spaces}, without empty texts."""
    return {key: normal for key, text in texts.items() if (normal := " ".join(text.lower().split()))}


def same_texts(test: dict[str, str], train: dict[str, str]) -> dict[str, str]:
    """Return {test id: id of the first equal training text}."""
    ids = {text: key for key, text in reversed(train.items())}
    return {key: ids[text] for key, text in test.items() if text in ids}


def search_documents(
    documents: dict[str, str], queries: dict[str, str], train: RetrievalTask
) -> tuple[set[str], dict[str, str]]:
    """Return ids of the documents that are nearly in `train`, and {qid: training document with the query's text}.

    Each training document is read once, whatever the number of queries: their first words find the candidates.
    """
    beginnings = [{} for _ in range(RUN_WORDS + 1)]  # by number of words: {hash: qids}
    for qid, text in queries.items():
        words = text.split()[:RUN_WORDS]
        if len(words) >= SHORTEST_QUERY_WORDS:
            (value,) = hashed_runs(words)[len(words)]
            beginnings[len(words)].setdefault(int(value), []).append(qid)
    sampled, quoted = [np.zeros(0, np.uint64)], {}
    for pid, text in tqdm(normalized(train.documents).items(), desc="training documents", unit="text", leave=False):
        runs = hashed_runs(text.split())
        sampled.append(sample(runs[RUN_WORDS]))
        for length, wanted in enumerate(beginnings):
            found = np.intersect1d(runs[length], np.fromiter(wanted, np.uint64)) if wanted else []
            for qid in (qid for value in found for qid in wanted[int(value)]):
                if f" {queries[qid]} " in f" {text} ":
                    quoted.setdefault(qid, pid)
    seen = np.unique(np.concatenate(sampled))
    near = set()
    for pid, text in documents.items():
        hashes = sample(hashed_runs(text.split())[RUN_WORDS])
        if hashes.size and np.isin(hashes, seen).mean() >= NEAR_FRACTION:
            near.add(pid)
    return near, quoted


def sample(hashes: np.ndarray) -> np.ndarray:
    """Return those of the hashes (n,) that begin with SAMPLED_BITS zeros, each once."""
    return np.unique(hashes[hashes >> np.uint64(64 - SAMPLED_BITS) == 0])


def hashed_runs(words: list[str]) -> list[np.ndarray]:
    """Return hashes of all runs of 0, 1, ... RUN_WORDS words: RUN_WORDS + 1 uint64 arrays, of W - n + 1 for length n.

    They are the same on every machine.
    """
    values = np.fromiter(map(_hashed_word, words), np.uint64)  # (W,)
    sums = [np.zeros(len(values) + 1, np.uint64)]
    for length in range(1, RUN_WORDS + 1):  # arithmetic is modulo 2^64
        count = max(len(values) - length + 1, 0)
        sums.append(sums[-1][:count] * MULTIPLIER + values[length - 1 : length - 1 + count])
    return [(values ^ (values >> np.uint64(29))) * MULTIPLIER for values in sums]


@lru_cache(maxsize=1_000_000)
def _hashed_word(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "big")
