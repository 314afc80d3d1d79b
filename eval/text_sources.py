"""Texts of named sources, to see whether vectors tell them apart."""

import random
from pathlib import Path

import pyarrow.parquet as pq

TEXT_COLUMNS = ("text", "passage")


def parse_source(argument: str) -> tuple[str, Path]:
    """Name and path of "NAME=PATH".

    Raises:
        ValueError: it has another form.
    """
    name, _, path = argument.partition("=")
    if not name or not path:
        raise ValueError(f"source {argument!r} must have the form NAME=PATH, as in web=data/web")
    return name, Path(path).expanduser()


def parse_sources(arguments: list[str]) -> dict[str, Path]:
    """{name: path}.

    Raises:
        ValueError: one has another form, or two have the same name.
    """
    sources: dict[str, Path] = {}
    for name, path in map(parse_source, arguments):
        if name in sources:
            raise ValueError(
                f"source {name!r} is given twice, as {sources[name]} and {path}; give each a name of its own"
            )
        sources[name] = path
    return sources


def read_source(path: Path, count: int, split: str, seed: int = 0) -> list[str]:
    """At most `count` texts, drawn by chance; empty ones are left out.

    Args:
        path: a parquet file with a column `text` or `passage`; a folder of such files; one of folders that each have
            SPLIT.parquet; or a task's folder, of which documents/SPLIT.parquet is read.
        split: of a folder that has splits.

    Raises:
        ValueError: count < 1, there is no such file, it has no such column, or it holds no text.
    """
    if count < 1:
        raise ValueError(f"texts={count} draws none from {path}; it must be at least 1")
    texts = [text for file in _files(path, split) for text in _column(file) if text and text.strip()]
    if not texts:
        raise ValueError(f"source {path} holds no text; choose another path")
    return random.Random(seed).sample(texts, min(count, len(texts)))


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    for folder in (path / "documents", path):
        if (folder / f"{split}.parquet").is_file():
            return [folder / f"{split}.parquet"]
    files = sorted(path.glob(f"*/{split}.parquet")) or sorted(path.glob("*.parquet"))
    if not files:
        raise ValueError(f"source {path} is no parquet file and no folder of them; give one with a column `text`")
    return files


def _column(file: Path) -> list[str | None]:
    present = pq.read_schema(file).names
    for name in TEXT_COLUMNS:
        if name in present:
            return pq.read_table(file, columns=[name])[name].to_pylist()
    raise ValueError(f"{file} has no column `text` or `passage`; it has {', '.join(present)}")
