"""What indexing would take, before anything is embedded."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2bert.eval.progress import counted

from .documents import find_files
from .encoder import FEWEST_TOKENS
from .index import Index, Report

SAMPLE_TOKENS = 50_000  # of the documents, embedded to measure this machine
TEXT_SHARE = 0.6  # bytes on the disk for a character of text: compressed, and once more as an index of words


def make_plan(index: Index, paths: Sequence[Path]) -> tuple[dict[str, int | float], list[tuple[str, str]]]:
    """Read the files that `Index.add` would, count their tokens and embed a sample of them. Changes nothing.

    Returns: numbers by name, and the files that cannot be read with the reason.
    """
    found, report, sample = find_files(paths, index.folder), Report(), []
    documents = tokens = vectors = characters = sampled = 0
    begin = time.perf_counter()
    with counted(sum(found.files.values()), "reading", "byte") as progress:
        for changed, _, _, size in index.changed_files(found.files, report):
            texts = [document.text for document in changed]
            counts = index.encoder.count_tokens(texts) if texts else np.zeros(0, dtype=np.int64)
            windows = -(-counts // (index.encoder.max_tokens or counts.max(initial=1)))  # or more: they overlap
            most = 1 if index.encoder.base.parts_problem else index.vectors
            vectors += int(np.clip(counts // FEWEST_TOKENS, windows, windows * most).sum())
            documents, tokens = documents + len(texts), tokens + int(counts.sum())
            characters += sum(map(len, texts))
            for text, count in zip(texts, counts.tolist(), strict=True):
                if sampled < SAMPLE_TOKENS:
                    sample.append(text[: len(text) * (SAMPLE_TOKENS - sampled) // count + 1])
                    sampled += min(count, SAMPLE_TOKENS - sampled)
            progress.add(size)
    seconds, begin = time.perf_counter() - begin, time.perf_counter()
    gigabytes = 0.0
    if sample:
        index.encoder.encode_documents(sample, index.vectors)
        seconds += (time.perf_counter() - begin) * tokens / sampled
        gigabytes = (vectors * index.encoder.dimensions * 2 + characters * TEXT_SHARE) / 1e9
    numbers = {
        "files": len(found.files), "hidden or repeated files left out": found.left_out,
        "documents unchanged": report.unchanged, "documents to embed": documents, "tokens": tokens, "vectors": vectors,
        "minutes here": round(seconds / 60, 1), "gigabytes more on the disk": round(gigabytes, 3),
    }  # fmt: skip
    return numbers, [*found.failures, *report.failures]
