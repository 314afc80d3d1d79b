"""What indexing would take, before anything is embedded."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from m2bert.terminal import shown

from .index import Index, Report, file_size

SAMPLE_TOKENS = 50_000  # of the documents, embedded to measure this machine
TEXT_SHARE = 0.6  # bytes on the disk for a byte of text: compressed, and once more as an index of words


class Plan(NamedTuple):
    """What `m2bert index` would do with some files."""

    files: int  # all of them; the other numbers are of those that are new or have changed
    unchanged: int  # documents
    documents: int
    tokens: int
    vectors: int
    seconds: float  # of embedding on this machine, as measured on a sample
    seconds_reading: float  # as measured now
    gigabytes: float  # on the disk
    left_out: int
    failures: list[tuple[str, str]]


def make_plan(index: Index, paths: Sequence[Path]) -> Plan:
    """Read the files that `Index.add` would, count their tokens and embed a sample of them. Changes nothing."""
    from m2bert.eval.progress import counted

    found, report, sample = index.find(paths), Report(), []
    sizes = {path: file_size(path) for path in found.files}
    documents = tokens = vectors = characters = sampled = 0
    begin = time.perf_counter()
    with counted(sum(sizes.values()), "reading", "byte") as progress:
        for changed, _, _, size in index.changed_files(sizes, report):
            texts = [document.text for document in changed]
            counts = index.encoder.count_tokens(texts).tolist() if texts else []
            vectors += sum(index.encoder.count_vectors(count, index.vectors) for count in counts)
            documents, tokens, characters = (
                documents + len(texts),
                tokens + sum(counts),
                characters + len("".join(texts)),
            )
            for text, count in zip(texts, counts, strict=True):
                if sampled < SAMPLE_TOKENS:
                    sample.append(text[: len(text) * (SAMPLE_TOKENS - sampled) // count + 1])
                    sampled += min(count, SAMPLE_TOKENS - sampled)
            progress.add(size)
    reading = time.perf_counter() - begin
    begin = time.perf_counter()
    index.encoder.encode_documents(sample, index.vectors)
    seconds = (time.perf_counter() - begin) * tokens / max(sampled, 1)
    gigabytes = (vectors * index.encoder.dimensions * 2 + characters * TEXT_SHARE) / 1e9
    failures = [*found.failures, *report.failures]
    return Plan(
        len(found.files), report.unchanged, documents, tokens, vectors, seconds, reading, gigabytes, found.left_out,
        failures,
    )  # fmt: skip


def format_plan(plan: Plan) -> str:
    """Return a plan for a person."""
    minutes = (plan.seconds + plan.seconds_reading) / 60
    lines = [
        f"{plan.files:,} files: {plan.unchanged:,} documents unchanged, {plan.documents:,} to embed, "
        f"{plan.tokens:,} tokens, {plan.vectors:,} vectors",
        f"about {minutes:,.1f} minutes here and {plan.gigabytes:,.2f} GB on the disk",
    ]
    if plan.left_out:
        lines.append(f"{plan.left_out:,} hidden files left out")
    if plan.failures:
        lines += [f"{len(plan.failures):,} files cannot be read:"]
        lines += [f"  {shown(path)}: {shown(reason)}" for path, reason in plan.failures]
    return "\n".join(lines)
