"""Text for training: the entries of `data.sources`, the files they name, and the documents in those files.

documents/SPLIT.parquet          LoCoV1 schema, column `passage`; in one file or in the Hub's parts
SPLIT.parquet, SPLIT-*.parquet   column `text`
SPLIT.jsonl, SPLIT-*.jsonl       (or .json, also packed as .gz) one object a line, key `text`
SPLIT.txt, SPLIT-*.txt           documents separated by blank lines
any .txt, .md and .html files    a document each, where the folder has neither tables nor files called after a split

JSON lines and plain text are read here and not by `datasets`, whose readers turn texts like "2011-01-01" into other
ones, and which do not name the line that is wrong.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from m2bert.eval.tasks.kinds import DOCUMENTS, TABLES
from m2bert.files import shards, visible
from m2bert.rows import read_rows
from m2bert.schema import Schema, checked
from m2bert.terminal import one_line
from m2bert.text_files import TEXTS, read_document, text_files

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DEFAULT_SHARES = {"variable": 0.3, "maximum": 0.7}  # of the examples, over all sources (paper section A.3)
TOLERANCE = 1e-6
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".txt")
SPLIT_FILE = re.compile(r"(train|validation|dev|test)[.-]")


class Source(Schema):
    """One entry of `data.sources`.

    `validation_split` null carves a hundredth of the documents out of `split`, by the hash of their text; it is always
    null for a single file and for a folder without splits.
    """

    path: str | None  # as written; in what `parse_sources` returns a Path if it is local, a str if it is on the Hub
    name: Annotated[str, Field(pattern="^[^/]+$")] | None = None  # in logs and metrics; default the end of the path
    split: str | None = None  # trained on
    validation_split: str | None = "validation"  # held out
    column: str | None = None  # holds the text; default `text`, or `passage` in a LoCoV1 folder
    config: str | None = None  # as revision: of a data set on the Hub
    revision: str | None = None
    rows_per_document: Annotated[int, Field(ge=1)] = 1  # joined to one, where a row is less (a sentence)
    variable: Annotated[float, Field(ge=0, le=1)] = 0.0  # as maximum: share of the examples (paper Table 2)
    maximum: Annotated[float, Field(ge=0, le=1)] = 0.0

    @property
    def on_hub(self) -> bool:
        return isinstance(self.path, str)

    @property
    def shares(self) -> dict[str, float]:
        return {"variable": self.variable, "maximum": self.maximum}

    def splits(self) -> dict[str, "TextFiles"]:
        """Return the local files of the split that is trained on, and of the validation split if there is one."""
        found = {self.split: find_texts(self.path, self.split, self.column, self.rows_per_document)}
        if (held := self.validation_split) is not None:
            found[held] = TextFiles(find_files(self.path, held), self.column, self.rows_per_document)
        return found


def parse_sources(entries: list[dict], local_folder: Callable[[str | None], Path]) -> list[Source]:
    """Return the sources that have a share of the mixture, from the entries of `data.sources`. Where no entry has a
    share, sources are equal, 0.3 of the examples variable and 0.7 maximum; otherwise a missing share is 0.
    `local_folder` gives the folder of the path null."""
    sources = [parse_source(entry, f"data.sources[{i}]", local_folder) for i, entry in enumerate(entries)]
    if not any(DEFAULT_SHARES.keys() & source.model_fields_set for source in sources):
        equal = {kind: share / len(sources) for kind, share in DEFAULT_SHARES.items()}
        sources = [source.model_copy(update=equal) for source in sources]
    total = sum(source.variable + source.maximum for source in sources)
    if len({source.name for source in sources}) < len(sources) or abs(total - 1) > TOLERANCE:
        listed = ", ".join(f"{source.name!r} {source.shares}" for source in sources)
        raise ValueError(f"data.sources: names must differ, and shares sum to 1, not {total:g}: {listed}")
    return [source for source in sources if source.variable + source.maximum]


def parse_source(entry: dict, where: str, local_folder: Callable[[str | None], Path]) -> Source:
    """Return one entry with its path found and its defaults filled in."""
    source = checked(Source, entry, where)
    path = local_folder(None) if source.path is None else Path(source.path).expanduser()
    name = source.name or ("pydocs" if source.path is None else path.name)
    found, useless = {"path": path, "name": name, "split": source.split or "train"}, ("config", "revision")
    if path.is_file() or has_no_splits(path, found["split"]):
        found["validation_split"], useless = None, (*useless, "split", "validation_split")
    elif source.path is not None and not path.is_dir():
        if not HUB_ID.fullmatch(source.path):
            raise ValueError(f"{where}: {source.path!r} is no file, no folder and not on the Hub (ORGANIZATION/NAME)")
        found["path"], useless = source.path, ()
    given = [key for key in useless if key in source.model_fields_set and getattr(source, key) is not None]
    if given:
        raise ValueError(f"{where}: {path} is local and has no {' and no '.join(given)}")
    source = source.model_copy(update=found)
    for key in ("split", "validation_split"):
        refuse_test(f"{where}: {key}", getattr(source, key))
    if source.split == source.validation_split:
        raise ValueError(
            f"{where}: split and validation_split are both {source.split!r}; name another to validate on, or null, "
            "which holds out a hundredth of the documents"
        )
    return source


def names_split(value: str, split: str) -> bool:
    """Return whether the name of a split, a file or a Hub data set contains a word such as `test`.

    `validation+TEST`, `test_256`, `test-00000-of-00001.parquet` and `test/0.parquet` contain it, `latest` does not.
    """
    path = Path(value.lower())
    return path.parent.name == split or bool(re.search(rf"(?<![a-z]){split}(?![a-z])", path.name))


def refuse_test(key: str, value: str | None):
    """Raise ValueError if a setting names the test split, or a file of it."""
    if value is not None and names_split(value, "test"):
        raise ValueError(f"{key}={value} is the test split: neither trained on nor selected on. Name another")


@dataclass(frozen=True)
class TextFiles:
    """Documents of one or more files, in order; can be iterated any number of times.

    Args:
        column: of parquet, key of JSON lines; None takes `text`, or `passage` in a LoCoV1 folder.
        rows_per_document: how many successive rows make one document, joined by line breaks.
        whole: whether a file is a row.
    """

    files: tuple[Path, ...]
    column: str | None = None
    rows_per_document: int = 1
    whole: bool = False

    def __iter__(self) -> Iterator[str]:
        """Yield the documents. Raise ValueError for what is no text, with file and line."""
        for path in self.files:
            rows = self.rows(path)
            while group := list(itertools.islice(rows, self.rows_per_document)):
                yield "\n".join(group)

    def rows(self, path: Path) -> Iterator[str]:
        """Yield the texts of the rows of one file."""
        if self.whole:
            return map(read_document, (path,))
        column = self.column or ("passage" if path.parent.name == DOCUMENTS else "text")
        return (text_of(row, column, where) for where, row in read_texts(path, column))

    def check(self):
        """Raise ValueError if the first row of a file is no text, before all are read."""
        for path in self.files:
            next(self.rows(path), None)

    def identity(self) -> list:
        """Return what changes when the text may have changed: real paths, sizes, times of change, how they are read."""
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return [stats, self.column, self.rows_per_document, *["whole"] * self.whole]


def find_texts(path: Path, split: str, column: str | None = None, rows_per_document: int = 1) -> TextFiles:
    """Return the texts of a split in a folder, of a file, or of a folder without splits. Raise ValueError if there are
    none to read."""
    if has_no_splits(path, split):
        return TextFiles(tuple(text_files(path)), column, rows_per_document, whole=True)
    return TextFiles(find_files(path, split), column, rows_per_document)


def has_no_splits(folder: Path, split: str) -> bool:
    """Return whether a folder holds texts, and neither tables nor files called after this split or a usual one."""
    there = visible(folder, "*") if folder.is_dir() else []
    tables = [path.name for path in [*there, *visible(folder, f"{DOCUMENTS}/*")] if path.name.endswith(TABLES)]
    named = split_files(folder, split) or any(SPLIT_FILE.match(path.name) for path in there)
    return not tables and not named and any(path.suffix.lower() in TEXTS for path in visible(folder, "**/*"))


def find_files(path: Path, split: str) -> tuple[Path, ...]:
    """Return the files of a split in a folder that has splits, or the file itself. Raise ValueError if there are none
    to read."""
    refuse_test("path" if path.is_file() else "split", path.stem if path.is_file() else split)
    found = (path,) if path.name.endswith(SUFFIXES) else ()
    if path.is_dir():
        kinds = ([*path.glob(f"{split}{suffix}"), *sorted(path.glob(f"{split}-*{suffix}"))] for suffix in SUFFIXES)
        found = tuple(shards(path / DOCUMENTS, split, TABLES)) or next(filter(None, map(tuple, kinds)), ())
    if not found:
        there = ", ".join(file.name for file in split_files(path, split)[:3]) or "nothing of that name"
        raise ValueError(
            f"source {path} holds neither documents/{split}.parquet nor {split}.* or {split}-*.* of the types "
            f"{', '.join(SUFFIXES)}, nor texts without splits; it holds {there}"
        )
    return found


def split_files(folder: Path, split: str) -> list[Path]:
    """Return the files of a folder that are called after a split, whatever their type, without hidden ones."""
    return [path for path in sorted(folder.glob(f"{split}[.-]*")) if path.is_file()] if folder.is_dir() else []


def read_texts(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    """Yield where each text of a file is, and the row that holds it; of a plain text, the lines between blank ones."""
    if path.suffix != ".txt":
        yield from read_rows(path, (column,))
        return
    try:
        with path.open("rb") as file:
            for blank, lines in itertools.groupby(file, key=lambda line: not line.strip()):
                text = b"".join(lines).decode()
                if not blank:
                    yield str(path), {column: text.lstrip("\ufeff").strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}); write it again, text as UTF-8") from error


def text_of(row, column: str, where: str) -> str:
    """Return the text of a row, or an empty one for null. Raise ValueError if there is anything else."""
    if not isinstance(row, dict) or not isinstance(row.get(column, 0), str | None):
        raise ValueError(f"{where} holds no text as {column!r}: {row!r:.80}")
    return row[column] or ""
