"""Texts of named sources, to see whether vectors tell them apart."""

import logging
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m2bert.files import visible

from ..tasks.schema import read_table

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("text", "passage")


def parse_source(argument: str) -> tuple[str, Path]:
    """Return name and path of "NAME=PATH".

    Raises:
        ValueError: it has another form.
    """
    name, _, path = argument.partition("=")
    if not name or not path:
        raise ValueError(f"source {argument!r} must have the form NAME=PATH, as in web=data/web")
    return name, Path(path).expanduser()


def parse_sources(arguments: list[str]) -> dict[str, Path]:
    """Return {name: path}.

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
    """Draw at most `count` texts at random; empty ones are left out.

    Args:
        path: a parquet file with a column `text` or `passage`; a folder of such files; one of folders that each have
            SPLIT.parquet; or a task's folder, of which documents/SPLIT.parquet is read.
        split: of a folder that has splits.

    Raises:
        ValueError: count < 1, there is no such file, it has no such column, or it holds no text.
    """
    if count < 1:
        raise ValueError(f"texts={count} draws none from {path}; it must be at least 1")
    rows = [text for file in _files(path, split) for text in _column(file)]
    texts = [text for text in rows if text and text.strip()]
    if not texts:
        raise ValueError(f"source {path} holds no text; choose another path")
    if len(texts) < len(rows):
        logger.warning("%s: %d of %d texts are empty and are left out", path, len(rows) - len(texts), len(rows))
    return random.Random(seed).sample(texts, min(count, len(texts)))


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    for folder in (path / "documents", path):
        if (folder / f"{split}.parquet").is_file():
            return [folder / f"{split}.parquet"]
    files = visible(path, f"*/{split}.parquet") or visible(path, "*.parquet")
    if not files:
        raise ValueError(f"source {path} is no parquet file and no folder of them; give one with a column `text`")
    return files


def _column(file: Path) -> list[str | None]:
    try:
        present = pq.read_schema(file).names
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read ({error}); write it again as parquet") from error
    name = next((name for name in TEXT_COLUMNS if name in present), None)
    if name is None:
        raise ValueError(f"{file} has no column `text` or `passage`; it has {', '.join(present)}")
    texts = read_table(file, (name,))[name].to_pylist()
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{file}: column {name!r} holds {text!r}, which is no text; convert the column")
    return texts
