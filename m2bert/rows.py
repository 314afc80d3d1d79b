"""The rows of parquet files and JSON lines, one after another, each with its place for errors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import read_json_lines
from .terminal import one_line

PARQUET_ROWS = 16  # read at once: a row can be a whole book


def read_rows(path: Path, columns: tuple[str, ...], prefix: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yield where each row of a file is, to be named in errors, and the row.

    A row of a parquet file holds `columns`, and the others whose names begin with `prefix`. A row of any other file is
    the JSON of a line, unchecked.

    Raises:
        ValueError: names a file that cannot be read, or parquet that lacks one of `columns` or has one twice.
    """
    errors = (OSError, UnicodeDecodeError)
    try:
        if path.suffix == ".parquet":
            import pyarrow as pa
            from pyarrow.parquet import ParquetFile

            errors += (pa.ArrowException,)
            file = ParquetFile(path)
            names = file.schema_arrow.names
            read = [name for name in names if name in columns or (prefix and name.startswith(prefix))]
            if len({*read}) < len(read) or not {*columns} <= {*read}:
                raise ValueError(f"{path} needs the columns {', '.join(columns)}, each once; it has {', '.join(names)}")
            batches = file.iter_batches(PARQUET_ROWS, columns=read)
            rows = enumerate((row for batch in batches for row in batch.to_pylist()), 1)
            yield from ((f"{path}, row {number}", row) for number, row in rows)
        else:
            yield from ((f"{path}, line {number}", row) for number, row in read_json_lines(path))
    except errors as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}); write it again, text as UTF-8") from error
