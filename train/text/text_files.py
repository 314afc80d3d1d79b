"""Local text: which files a folder holds for a split, and the documents in them, read piece by piece.

documents/SPLIT.parquet          LoCoV1 schema, column `passage`
SPLIT.parquet, SPLIT-*.parquet   column `text`
SPLIT.jsonl, SPLIT-*.jsonl       (or .json) one object a line, key `text`
SPLIT.txt, SPLIT-*.txt           documents separated by blank lines
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from m2bert.files import parse_json

from .splits import refuse_test

SUFFIXES = (".parquet", ".jsonl", ".json", ".txt")
PARQUET_ROWS = 16  # read at once: a row can be a whole book


@dataclass(frozen=True)
class TextFiles:
    """Documents of one or more files, in order; can be read any number of times.

    Args:
        column: of parquet, key of JSON lines; None takes `text`, or `passage` in a LoCoV1 folder.
        rows_per_document: how many successive rows make one document, joined by line breaks.
    """

    files: tuple[Path, ...]
    column: str | None = None
    rows_per_document: int = 1

    def __iter__(self) -> Iterator[str]:
        return (text for text, _ in self.read())

    def read(self) -> Iterator[tuple[str, float]]:
        """Yield documents, and how many bytes of the files each stands for; they sum to `total_bytes`, up to blank
        lines.

        Raises:
            ValueError: a column that is missing or holds no text, a line that is no JSON, a file that is not UTF-8.
        """
        for path in self.files:
            column = self.column_of(path)
            read = {".parquet": read_parquet, ".txt": read_blocks}.get(path.suffix, read_json_lines)
            try:
                yield from join_rows(read(path, column), self.rows_per_document)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error

    def column_of(self, path: Path) -> str:
        """Return the column that is read of a file."""
        return self.column or ("passage" if path.parent.name == "documents" else "text")

    def check_columns(self):
        """Raise ValueError if a parquet file has no such column or no text in it. Reads the files' ends alone."""
        for path in self.files:
            if path.suffix == ".parquet":
                from ..pairs.parquet import check_text_column

                check_text_column(path, self.column_of(path))

    @property
    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def identity(self) -> list:
        """Return what changes when the text may have changed: real paths, sizes, times of change, how they are read."""
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return [stats, self.column, self.rows_per_document]


def find_files(path: Path, split: str) -> tuple[Path, ...]:
    """Return the files of a split in a folder, or the file itself.

    Raises:
        ValueError: there are none, the file is of an unknown kind, or it is the test split.
    """
    if path.is_file():
        refuse_test("path", path.stem)
        if path.suffix not in SUFFIXES:
            raise ValueError(f"source {path} is none of {', '.join(SUFFIXES)}; convert it")
        return (path,)
    refuse_test("split", split)
    if (path / "documents" / f"{split}.parquet").is_file():
        return (path / "documents" / f"{split}.parquet",)
    for suffix in SUFFIXES:
        found = [path / f"{split}{suffix}"] if (path / f"{split}{suffix}").is_file() else []
        found += sorted(path.glob(f"{split}-*{suffix}"))
        if found:
            return tuple(found)
    there = ", ".join(file.name for file in split_files(path, split)[:3])
    raise ValueError(
        f"source {path} holds neither documents/{split}.parquet nor {split}.parquet, .jsonl, .json or .txt "
        f"(nor {split}-*.parquet ..){'; it holds ' + there if there else ''}"
    )


def split_files(folder: Path, split: str) -> list[Path]:
    """Return the files of a folder that are called after a split, whatever their type; hidden ones are not."""
    return [path for path in sorted(folder.glob(f"{split}[.-]*")) if path.is_file()] if folder.is_dir() else []


def read_parquet(path: Path, column: str) -> Iterator[tuple[str, float]]:
    """Yield the texts of a column, and each row's share of the file's bytes."""
    from ..pairs.parquet import naming, open_columns

    file = open_columns(path, [column])
    bytes_a_row = path.stat().st_size / max(file.metadata.num_rows, 1)
    where = f"{path}, column {column!r}"
    with naming(where):
        for batch in file.iter_batches(PARQUET_ROWS, columns=[column]):
            for text in batch.column(0).to_pylist():
                yield check_text(text, where), bytes_a_row


def read_json_lines(path: Path, column: str) -> Iterator[tuple[str, float]]:
    """Yield the texts under a key of every line, and the bytes of the line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            row = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"), f"{where},")
            if not isinstance(row, dict) or column not in row:
                raise ValueError(f"{where} is no object with a key {column!r}")
            yield check_text(row[column], f"{where}, key {column!r}"), len(line)


def read_blocks(path: Path, column: str) -> Iterator[tuple[str, float]]:
    """Yield the texts between blank lines, and the bytes of their lines."""
    with path.open("rb") as file:
        for blank, lines in itertools.groupby(file, key=lambda line: not line.strip()):
            if not blank:
                block = b"".join(lines)
                yield block.decode().lstrip("\ufeff").strip(), len(block)


def check_text(text, where: str) -> str:
    """Return the text; nothing (null) is an empty one. Raises ValueError for what is no text or no valid Unicode."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where} holds {type(text).__name__}, not text")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half of a surrogate pair; write valid Unicode") from error
    return text or ""


def join_rows(rows: Iterable[tuple[str, float]], count: int) -> Iterator[tuple[str, float]]:
    """Yield every `count` successive texts as one, joined by line breaks, and the sum of their weights."""
    if count == 1:
        yield from rows
        return
    rows = iter(rows)
    while group := list(itertools.islice(rows, count)):
        texts, weights = zip(*group, strict=True)
        yield "\n".join(texts), sum(weights)
