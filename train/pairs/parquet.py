"""Read parquet files, with errors that name the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Raise pyarrow's errors and the system's as a ValueError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as parquet ({message}); write it again") from error


def open_columns(path: Path | str, columns: list[str], must: tuple[str, ...] | None = None) -> pq.ParquetFile:
    """Open a file that has columns, once each.

    Args:
        must: those that it must have; by default all.

    Raises:
        ValueError: it is no parquet file, lacks a column or has it twice.
    """
    with naming(path):
        file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    for column in must if must is not None else columns:
        if column not in names:
            raise ValueError(f"{path} has no column {column!r} (it has {', '.join(names)})")
    double = next((column for column in columns if names.count(column) > 1), None)
    if double is not None:
        raise ValueError(f"{path} has the column {double!r} twice; remove one")
    return file


def check_text_column(path: Path | str, column: str):
    """Raise ValueError unless a file has a column of text."""
    kind = open_columns(path, [column]).schema_arrow.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(test(kind) for test in tests):
        raise ValueError(f"{path}, column {column!r} holds {kind}, not text")


def read_rows(path: Path | str, columns: list[str], limit: int | None = None) -> list[dict]:
    """Read the first rows, or all, of some columns."""
    file = open_columns(path, columns)
    with naming(path):
        return file.read(columns=columns).slice(0, limit).to_pylist()
