"""Runs and judgments in the text formats of TREC, as trec_eval, ir_measures and ranx read them.

A run has the columns query, Q0, document, rank, score, tag; judgments have query, iteration, document, grade. Columns
are separated by spaces or tabs. Files may be gzipped.
"""

import io
import itertools
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from m2bert.files import open_packed, write_atomically

from ..search import DEPTH, Run, trec_order

RUN = ("query", "Q0", "document", "rank", "score", "tag")
QRELS = ("query", "iteration", "document", "grade")
TYPES = {
    "query": pa.dictionary(pa.int32(), pa.string()),
    "document": pa.string(),
    "score": pa.float32(),
    "grade": pa.int64(),
}


def read_run(path: Path, depth: int = DEPTH) -> Run:
    """Read the first `depth` documents of every query, in no particular order; those that tie with the last one too.

    Ranks in the file are ignored, as trec_eval ignores them: scores decide.

    Raises ValueError if a line does not have six columns, a score is no number, or one of these documents stands twice.
    """
    table = _read(path, RUN)
    wrong = np.isnan(table["score"].to_numpy())
    if wrong.any():
        raise ValueError(f"{path}: the score on line {int(wrong.argmax()) + 1} is NaN; give every document a number")
    names, starts, table = _by_query(table)
    scores = table["score"].to_numpy()
    kept = np.ones(len(scores), dtype=bool)
    for first, end in itertools.pairwise(starts):
        if end - first > depth:
            kept[first:end] = scores[first:end] >= np.partition(scores[first:end], -depth)[-depth]
    starts = np.append(0, np.cumsum(kept))[starts].tolist()
    return _as_dicts(names, starts, table["document"].filter(pa.array(kept)).to_pylist(), scores[kept].tolist(), path)


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read the grades of judged documents, {qid: {pid: grade}}. Raises ValueError if a document is judged twice."""
    names, starts, table = _by_query(_read(path, QRELS))
    return _as_dicts(names, starts, table["document"].to_pylist(), table["grade"].to_pylist(), path)


def write_run(path: Path, run: Run, tag: str) -> None:
    """Write a run, the best document of every query first. Scores are written as 32-bit floats, exactly."""
    tag = "-".join(tag.split())
    _write(
        path,
        (
            f"{qid} Q0 {pid} {rank} {np.float32(scores[pid])!s} {tag}"
            for qid, scores in run.items()
            for rank, pid in enumerate(trec_order(scores), start=1)
        ),
    )


def write_qrels(path: Path, qrels: dict[str, dict[str, int]]) -> None:
    """Write judgments."""
    _write(path, (f"{qid} 0 {pid} {grade}" for qid, judged in qrels.items() for pid, grade in judged.items()))


def check_ids(ids: Iterable[str], where: str) -> None:
    """Raise ValueError if an id is empty or holds white space, which separates columns here."""
    wrong = [each for each in ids if each.split() != [each]]
    if wrong:
        raise ValueError(f"{where}: {len(wrong)} ids have white space, as {min(wrong)!r}; run files cannot hold them")


def _write(path: Path, lines: Iterable[str]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)

    write_atomically(path, write)


def _read(path: Path, columns: tuple[str, ...]) -> pa.Table:
    """Read the columns that `TYPES` knows. Raises ValueError naming the file."""
    try:
        return _parsed(path, columns)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} has not the columns {' '.join(columns)}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy it again") from error


def _parsed(path: Path, columns: tuple[str, ...]) -> pa.Table:
    """Parse a file at once if one space or tab separates columns; else split the lines first."""
    read = pa_csv.ReadOptions(column_names=list(columns), block_size=2**24)
    convert = pa_csv.ConvertOptions(
        column_types={name: TYPES[name] for name in columns if name in TYPES},
        include_columns=[name for name in columns if name in TYPES],
        strings_can_be_null=False,
        null_values=[],
    )
    with open_packed(path) as file:
        delimiter = "\t" if b"\t" in file.readline() else " "
    parse = pa_csv.ParseOptions(delimiter=delimiter, quote_char=False)
    try:
        return pa_csv.read_csv(path, read, parse, convert)
    except pa.ArrowInvalid:
        with open_packed(path) as file:
            lines = b"\n".join(b"\t".join(line.split()) for line in file)
    parse.delimiter = "\t"
    return pa_csv.read_csv(io.BytesIO(lines), read, parse, convert)


def _by_query(table: pa.Table) -> tuple[list[str], list[int], pa.Table]:
    """Return the queries, the row at which each begins (and the end), and the rows in their order."""
    queries = table["query"].unify_dictionaries().combine_chunks()
    codes = queries.indices.to_numpy()
    if (codes[1:] < codes[:-1]).any():
        order = np.argsort(codes, kind="stable")
        table, codes = table.take(order), codes[order]
    names = queries.dictionary.to_pylist()
    return names, np.searchsorted(codes, np.arange(len(names) + 1)).tolist(), table


def _as_dicts(names: list[str], starts: list[int], pids: list[str], values: list, path: Path) -> dict[str, dict]:
    """Return {qid: {pid: value}}. Raises ValueError if a query has a document twice."""
    found = {}
    for name, (first, end) in zip(names, itertools.pairwise(starts), strict=True):
        found[name] = dict(zip(pids[first:end], values[first:end], strict=True))
        if len(found[name]) < end - first:
            [(pid, _)] = Counter(pids[first:end]).most_common(1)
            raise ValueError(f"{path}: query {name!r} has document {pid!r} twice; keep one line of it")
    return found
