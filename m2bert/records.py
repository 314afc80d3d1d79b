"""Result files of `m2bert eval` and `m2bert analyse`, {"format": 1, "results": [records]}: what a record must hold.

The schemas name what is read of a record, by the report, comparisons and model cards; a record may hold more.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, create_model, model_validator

from .files import check_writable, read_json, write_atomically
from .schema import FOREIGN, Schema, checked

FORMAT = 1
T = TypeVar("T")
TOLERANCE = 1e-6  # a mean of ones may be a little more than one

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=-TOLERANCE, le=1 + TOLERANCE)]
Seconds = Annotated[float, Field(ge=0, lt=1e9)]  # less than some thirty years
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
Some = Annotated[list[T], Field(min_length=1)]  # one or more
Triple = Annotated[list[float], Field(min_length=3, max_length=3)]


class Part(Schema):
    model_config = FOREIGN


def part(base: type[Part] = Part, **fields: Any) -> type[Part]:
    """Return a schema with the fields of `base` and these: a type, or (type, default) if the field may be missing."""
    fields = {name: kind if isinstance(kind, tuple) else (kind, ...) for name, kind in fields.items()}
    return create_model("Part", __base__=base, **fields)


class Origin(Part):
    task: str
    split: str
    source: str | None = None
    revision: str | None = None
    data_fingerprint: str | None = None


class Measurement(Part):
    system: str
    encoder: str | None = None
    policy: str | None = None
    date: str
    versions: dict[str, str] | None = None
    model_fingerprint: str | None = None
    device: str | None = None
    dtype: str | None = None
    paper_row: str | None = None


class Group(Part):
    """The score of a group of queries."""

    queries: Count
    ndcg_at_10: Share | None = None
    interval_95: Interval | None = None


class Hybrid(Part):
    method: str
    depth: Count | None = None
    weight: Share | None = None
    development_split: str | None = None
    development_ndcg_at_10: Share | None = None


class Example(Part):
    query: str
    answer_start: str
    rank: Count | None = None
    found_start: str | None = None


class Overlap(Part):
    test: part(task=str, split=str)
    train: part(task=str, split=str)
    documents: part(count=Count, same=Count, near=Count)
    queries: part(count=Count, same=Count, in_documents=(Count | None, None))


class Retrieval(Origin, Measurement):
    data_fingerprint: str
    policy: str
    vectors: str
    claim: str
    ndcg_at_10: Share
    interval_95: Interval
    query_scores: dict[str, Share] = Field(min_length=1)
    metrics: dict[str, part(mean=Share)] | None = None
    counts: part(queries=Count, documents=Count | None)
    vectors_per_document: float | None = None
    seen_share: Share | None = None
    seconds_per_document: Seconds | None = None
    trained_on: list[str] | None = None
    overlap: list[Overlap] | None = None
    by_length: part(tokenizer=str, rows=Some[part(Group, bucket=str)]) | None = None
    by_quarter: Some[part(Group, quarter=Count)] | None = None
    hybrid: Hybrid | None = None
    failures: list[Example] | None = None
    successes: list[Example] | None = None

    @model_validator(mode="after")
    def _mean_of_its_scores(self):
        mean = sum(self.query_scores.values()) / len(self.query_scores)
        if abs(mean - self.ndcg_at_10) > TOLERANCE:
            raise ValueError(f"ndcg_at_10={self.ndcg_at_10} is not the mean of query_scores, {mean}; evaluate again")
        return self


class Mteb(Origin, Measurement):
    metric: str
    value: float
    other_scores: dict[str, float] | None = None


class Needle(Origin, Measurement):
    passages: Count
    queries: Count
    seed: Count | None = None
    seen_share: Share | None = None
    rows: Some[part(position=Count, ndcg_at_10=Share, interval_95=(Interval | None, None))]


class Histogram(Part):
    counts: Some[Count]
    edges: list[float]

    @model_validator(mode="after")
    def _one_edge_more(self):
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError("a histogram has one edge more than counts")
        return self


class Lengths(Origin):
    data_fingerprint: str
    tokenizer: str
    queries: part(count=Count, mean_chars=float)
    documents: part(count=Count, mean_chars=float, mean_tokens=float, median_tokens=float, max_tokens=float,
                    histogram=Histogram)  # fmt: skip
    example: part(query=str, passage=str)


class Spans(Origin):
    quarters: list[Count] = Field(min_length=4, max_length=4)
    positions: part(count=Count, quartiles=Triple, mean_document_chars=float)


class Clusters(Measurement):
    sources: dict[str, Count]
    knn: part(k=Count, accuracy=Share, chance=Share)
    points: list[Triple]


class Times(Part):
    tokens: Count
    encode_seconds: Seconds
    tokenize_seconds: Seconds | None = None
    total_seconds: Seconds | None = None
    seen_share: Share | None = None


class Efficiency(Measurement):
    device: str
    threads: Count | None = None
    rows: Some[Times]


KINDS = {kind.__name__.lower(): kind for kind in (
    Retrieval, Mteb, Needle, Lengths, Spans, Clusters, Efficiency, Overlap
)}  # fmt: skip


class ResultFile(Schema):
    format: int = Field(ge=FORMAT, le=FORMAT)
    results: list[Any]


def free_output(output: Path | str | None, overwrite: bool) -> Path:
    """Return the file to write. Raises ValueError, before the work begins, if it is missing, taken or cannot be
    written."""
    if output is None:
        raise ValueError("no output given; name a JSON file with --output")
    path = Path(output)
    check_writable(path)
    if path.is_dir() or (path.exists() and not overwrite):
        kind = "is a folder" if path.is_dir() else "exists"
        raise ValueError(f"output {path} {kind}; choose another file or pass --overwrite")
    return path


def write_results(path: Path, records: list[dict]) -> None:
    """Write records whole or not at all; null stands for NaN, which JSON lacks."""
    finite = (json.loads(json.dumps(record), parse_constant=lambda name: None) for record in records)
    lines = ",\n".join(map(json.dumps, finite))  # a line each, so that diffs are small
    text = f'{{"format": {FORMAT}, "results": [\n{lines}\n]}}\n'
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_results(path: Path) -> list[Any]:
    """Return the entries of a result file, unchecked (see `check_record`). Raises ValueError if it is no such file."""
    return checked(ResultFile, read_json(path), str(path)).results


def check_record(record: Any, where: str) -> dict[str, Any]:
    """Return a record if it holds what its kind needs, else raise ValueError; `where` names the record in errors."""
    kind = record.get("kind") if isinstance(record, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{where}: kind {kind!r} is unknown; this version reads {', '.join(KINDS)}")
    checked(KINDS[kind], record, where)
    return record


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of the packages that are installed."""
    versions = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
