"""Write result files: {"format": 1, "results": [records]}, whole or not at all."""

import json
import math
from pathlib import Path

from m2bert.files import check_writable, write_atomically
from m2bert.records import FORMAT


def free_output(output: Path | str | None, overwrite: bool) -> Path:
    """Return the file to write, checked before the work begins.

    Raises:
        ValueError: none is given, it exists and may not be overwritten, it is a folder, or it cannot be written.
    """
    if output is None:
        raise ValueError("no output given; name a JSON file with --output")
    path = Path(output)
    check_writable(path)
    if path.is_dir() or (path.exists() and not overwrite):
        kind = "is a folder" if path.is_dir() else "exists"
        raise ValueError(f"output {path} {kind}; choose another file or pass --overwrite")
    return path


def write_results(path: Path, records: list[dict]) -> None:
    """Write records as `m2bert report` and the model card read them; null stands for NaN, which JSON lacks."""
    lines = [json.dumps(_finite(record), allow_nan=False) for record in records]  # a line each, so that diffs are small
    text = f'{{"format": {FORMAT}, "results": [\n' + ",\n".join(lines) + "\n]}\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
