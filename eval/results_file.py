"""Result files: {"format": 1, "results": [records]}, written whole or not at all."""

import json
import os
from pathlib import Path

from .atomic import write_atomically

FORMAT = 1


def free_output(output: Path | str | None, overwrite: bool) -> Path:
    """The file to write, its folder made: what cannot be written is told before the work, not after it.

    Raises:
        ValueError: none is given, it exists and `overwrite` is not set, it is a folder, or its folder cannot be made.
    """
    if output is None:
        raise ValueError("no output given; name a JSON file with --output")
    path = Path(output)
    if path.is_dir():
        raise ValueError(f"output {path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise ValueError(f"output {path} exists; choose another file or pass --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output {path} cannot be written ({error}); choose another folder") from error
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"output {path} cannot be written: its folder is read-only; choose another")
    return path


def write_results(path: Path, records: list[dict]) -> None:
    """Records as `m2bert report` and the model card read them."""
    lines = ",\n".join(json.dumps(record) for record in records)  # a line each: small, and differences can be read
    text = f'{{"format": {FORMAT}, "results": [\n{lines}\n]}}\n'
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_results(path: Path) -> list[dict]:
    """The records of a file that `write_results` wrote.

    Raises:
        ValueError: it is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"results {path} have format {content['format']}; this version reads format {FORMAT}")
        if not isinstance(content["results"], list):
            raise ValueError(f"results {path} hold no list of records; write them with `m2bert eval`")
        return content["results"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"results {path} are no result file: {error!r}; write it with `m2bert eval`") from error
