"""What the benchmark commands share: arguments refused in one line, records with their circumstances, JSON, tables."""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class BadArgument(ValueError):
    """An argument that cannot be served; the message names it, its value and the fix."""


class Parser(argparse.ArgumentParser):
    """Refuses bad arguments in one line, exit status 2."""

    def error(self, message):
        sys.exit(fail(message))


def fail(message: str) -> int:
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    return 2


def main_of(run: Callable[[], int]) -> None:
    """Run a command: a bad argument becomes one line and exit status 2."""
    try:
        sys.exit(run())
    except BadArgument as error:
        sys.exit(fail(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)


def positive_integers(name: str, text: str) -> list[int]:
    """Increasing list of positive integers from comma-separated text.

    Raises:
        BadArgument: anything else.
    """
    try:
        values = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise BadArgument(f"{name}={text!r} is not a list of integers; write it like 512,2048") from None
    if values[0] < 1:
        raise BadArgument(f"{name}={text!r} holds {values[0]}; every value must be at least 1")
    return values


def check_counts(options, *names: str) -> None:
    """Raise BadArgument where an option that is given is below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BadArgument(f"--{name.replace('_', '-')}={value} must be at least 1")


def choose_device(name: str, threads: int) -> str:
    """`cpu` or `cuda`, checked, with the number of CPU threads set.

    Raises:
        BadArgument: cuda is asked for and not there.
    """
    torch.set_num_threads(threads)
    if name == "cuda" and not torch.cuda.is_available():
        raise BadArgument("--device=cuda, but torch sees no NVIDIA GPU; use --device cpu")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def check_output(path: Path) -> None:
    """Raise BadArgument where `path` cannot be written, before anything is measured."""
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else f"needs a folder {path.parent} that does not exist"
        raise BadArgument(f"--output={path} {problem}; name a file in an existing folder")


@cache
def circumstances(device: str) -> dict:
    """What every record says about where it was measured."""
    return {
        "device": device,
        "processor": torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """The processor's model, with its family where the name alone says little."""
    with contextlib.suppress(OSError):
        fields = dict(
            [part.strip() for part in line.split(":", 1)]
            for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
            if ":" in line
        )
        name = fields.get("model name", platform.machine())
        if "cpu family" in fields:
            name += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
        return name
    return platform.processor() or platform.machine()


def commit() -> str:
    """Short hash of the source, `-dirty` with uncommitted changes outside docs; M2BERT_COMMIT where there is no git."""

    def git(*arguments):
        return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs").strip()
        return git("rev-parse", "--short", "HEAD").strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("M2BERT_COMMIT", "unknown")


def write_json(path: Path, records: list[dict]) -> None:
    """Replace `path` by the records at once: a reader sees the old file or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        json.dump(records, file, indent=1)
        file.write("\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Plain text, first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def seconds_text(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.3g} {unit}"


def bytes_text(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def quantiles(seconds: list[float]) -> tuple[float, list[float]]:
    """Median, and the 10 % and 90 % quantiles, of at least one measurement."""
    values = torch.tensor(seconds, dtype=torch.float64)
    low, middle, high = torch.quantile(values, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return middle, [low, high]
