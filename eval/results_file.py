"""Result files: {"format": 1, "results": [records]}, written whole or not at all."""

import json
from pathlib import Path

from .atomic import write_atomically

FORMAT = 1


def free_output(output: Path | str | None, overwrite: bool) -> Path:
    """The file to write, if it may be written."""
    if output is None:
        raise ValueError("no output given; name a JSON file with --output")
    path = Path(output)
    if path.exists() and not overwrite:
        raise ValueError(f"output {path} exists; choose another file or pass --overwrite")
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
        return content["results"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"results {path} are no result file: {error!r}; write it with `m2bert eval`") from error
