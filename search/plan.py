"""What indexing would take, before anything is embedded."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from m2bert.terminal import shown

from .documents import Unreadable, find_files, read_file
from .index import Index

SAMPLE_TOKENS = 50_000  # of the documents, embedded to measure this machine
TEXT_SHARE = 0.6  # bytes on the disk for a byte of text: compressed, and once more as an index of words


class Plan(NamedTuple):
    """What `m2bert index` would do with some files."""

    files: int
    documents: int
    tokens: int
    vectors: int
    seconds: float  # of embedding on this machine, as measured on a sample
    seconds_reading: float  # as measured now
    gigabytes: float  # on the disk
    left_out: int
    failures: list[tuple[str, str]]


def make_plan(index: Index, paths: Sequence[Path]) -> Plan:
    """Read all files, count their tokens and embed a sample of them. Changes nothing."""
    from m2bert.eval.progress import counted

    from .encoder import FEWEST_TOKENS

    found = find_files(paths)
    failures, sample = list(found.failures), []
    documents = tokens = vectors = chars = sampled = 0
    begin = time.perf_counter()
    with counted(len(found.files), "reading", "file") as progress:
        for path in found.files:
            try:
                texts = [document.text for document in read_file(path)]
            except Unreadable as error:
                failures.append((str(path), str(error)))
                continue
            finally:
                progress.add(1)
            counts = index.encoder.count_tokens(texts).tolist()
            windows = [-(-count // (index.encoder.max_tokens or count)) for count in counts]
            vectors += sum(
                min(max(n // FEWEST_TOKENS, 1), index.vectors * w) for n, w in zip(counts, windows, strict=True)
            )
            documents, tokens, chars = documents + len(texts), tokens + sum(counts), chars + sum(map(len, texts))
            if sampled < SAMPLE_TOKENS:
                sample, sampled = sample + texts, sampled + sum(counts)
    reading = time.perf_counter() - begin
    begin = time.perf_counter()
    index.encoder.encode_documents(sample, index.vectors)
    seconds = (time.perf_counter() - begin) * tokens / max(sampled, 1)
    gigabytes = (vectors * index.encoder.dimensions * 2 + chars * TEXT_SHARE) / 1e9
    return Plan(len(found.files), documents, tokens, vectors, seconds, reading, gigabytes, found.left_out, failures)


def format_plan(plan: Plan) -> str:
    """Return a plan for a person."""
    minutes = (plan.seconds + plan.seconds_reading) / 60
    lines = [
        f"{plan.documents:,} documents in {plan.files:,} files, {plan.tokens:,} tokens, {plan.vectors:,} vectors",
        f"about {minutes:,.1f} minutes here and {plan.gigabytes:,.2f} GB on the disk",
    ]
    if plan.left_out:
        lines.append(f"{plan.left_out:,} hidden files left out")
    if plan.failures:
        lines += [f"{len(plan.failures):,} files cannot be read:"]
        lines += [f"  {shown(path)}: {shown(reason)}" for path, reason in plan.failures]
    return "\n".join(lines)
