"""Read JSON and YAML strictly; write files and folders whole, with one writer at a time.

Every file that a user or another program gives to this package is read here. A reader refuses what could be understood
in two ways: a key that stands twice, NaN, half a surrogate pair, a YAML alias. What it returns is checked by a schema
(`m2bert.schema`), not by guards where it is used.
"""

import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import yaml

try:
    import fcntl
except ImportError:  # Windows, where folders cannot be opened: writers are not kept apart
    fcntl = None

HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # in JSON: perhaps half of a surrogate pair


def parse_json(text: str, where: str) -> Any:
    """Parse JSON; refuse NaN, infinite numbers, a key twice and half of a surrogate pair. `where` names the text in
    errors, such as the path of its file."""
    load = partial(json.loads, object_pairs_hook=_unique_keys, parse_constant=_finite, parse_float=_finite)
    return _parse(load, text, where, "JSON")


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML by the core schema of version 1.2: `no` and `on` are strings, 1e-3 is a number. Aliases and keys that
    stand twice are refused."""
    return _parse(partial(yaml.load, Loader=_CoreLoader), text, where, "YAML")  # a SafeLoader


def _parse(load: Callable[[str], Any], text: str, where: str, language: str) -> Any:
    try:
        value = load(text)
        if HALF_A_PAIR.search(text):
            json.dumps(value, ensure_ascii=False, default=str).encode()
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{where} is no valid {language}: {' '.join(str(error).split())}") from error
    return value


def format_yaml(value: Any) -> str:
    """Return YAML that readers of version 1.1 and of 1.2 read alike: a string that is none to either is quoted."""
    return yaml.dump(value, Dumper=_QuotingDumper, sort_keys=False, allow_unicode=True, width=120)


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a UTF-8 file that holds one JSON object. Raises ValueError naming the file."""
    return _mapping(parse_json(read_text(path), str(path)), path, "JSON object")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a UTF-8 YAML file that holds one mapping or nothing, which is {}. Raises ValueError naming the file."""
    value = parse_yaml(read_text(path), str(path))
    return {} if value is None else _mapping(value, path, "mapping of keys to values")


def _mapping(value: Any, path: str | Path, kind: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no {kind}; name the right file")
    return value


def read_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield the number, counted from 1, and the value of every line that is not blank; a name that ends in `.gz` is
    unpacked. Errors name file and line."""
    number = 0
    try:
        with open_packed(path) as packed, io.TextIOWrapper(packed, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, parse_json(line, f"{path}, line {number}")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, after line {number}, is not UTF-8 ({error}); save the file as UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}, after line {number}, cannot be unpacked ({error}); copy it again") from error


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark; a name that ends in `.gz` is unpacked. Raises ValueError
    naming the file."""
    try:
        with open_packed(path) as file:
            return file.read().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line} is not UTF-8; save the file as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def open_packed(path: str | Path) -> BinaryIO:
    """Open a file to read its bytes, those that were packed if its name ends in `.gz`."""
    return gzip.open(path) if str(path).endswith(".gz") else open(path, "rb")


def shards(folder: Path, split: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files of a split in a folder, of the first suffix that has any: SPLIT.SUFFIX, or else all parts
    SPLIT-00000-of-00002.SUFFIX, ..., as on the Hub. Raises ValueError if a part is missing."""
    names = {path.name: path for path in visible(folder, "*")}
    for suffix in suffixes:
        if f"{split}{suffix}" in names:
            return [names[f"{split}{suffix}"]]
        pattern = re.compile(rf"{re.escape(split)}-[0-9]{{5}}-of-([0-9]{{5}}){re.escape(suffix)}")
        parts = [name for name in names if pattern.fullmatch(name)]
        if parts:
            count = int(pattern.fullmatch(parts[0])[1])
            if parts != [f"{split}-{number:05d}-of-{count:05d}{suffix}" for number in range(count)]:
                raise ValueError(
                    f"{folder} has {', '.join(parts)}: not all {count} parts of one split; copy them again"
                )
            return [names[name] for name in parts]
    return []


def visible(folder: Path, pattern: str) -> list[Path]:
    """Return the sorted paths below a user's folder that match a glob pattern and that the user put there.

    A name that begins with a dot, or `__MACOSX`, in any part of the path below the folder is another program's:
    editors and archives leave copies and stubs of documents under such names.
    """
    return sorted(
        path
        for path in folder.glob(pattern)
        if not any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)
    )


def digest(path: str | Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)` and rename the result to `path`, so that no reader sees half of it, not even after
    a loss of power. Makes the folder of `path`. The next writer removes what a killed one left."""
    with claimed(path.with_name(f".{path.name}.partial"), wait=True) as scratch:
        empty(scratch)
        try:
            write(scratch / path.name)
            sync(scratch / path.name)
            (scratch / path.name).replace(path)
            sync(path.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def check_writable(path: str | Path, name: str = "output") -> None:
    """Raise ValueError, with the setting's `name`, if a file cannot be written here, in folders made if missing.

    One is written to a scratch folder where the first of those folders is to be made, and nothing of it is left.
    """
    place = Path(os.path.realpath(path))
    try:
        present = next(folder for folder in place.parents if folder.exists())
        with claimed(present / ".m2bert-check.partial", wait=True) as scratch:
            empty(scratch)
            try:
                write_atomically(scratch / place.relative_to(present), Path.touch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ValueError(f"{name}={path} cannot be written ({error.strerror or error}); name another") from error


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def claimed(folder: Path, wait: bool = False) -> Iterator[Path]:
    """Make a folder if it is missing, and keep other processes out of it until the block ends.

    The claim ends with the process, however it ends. The folder stays; the block may remove or rename it.

    Args:
        wait: until another process that holds the folder lets it go; else that is a ValueError.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield folder
            return
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # its last holder removed it just now
            continue
        try:
            _lock(descriptor, folder, "LOCK_EX", wait)
            still_there = False
            with suppress(FileNotFoundError):  # while this waited, its last holder may have removed or renamed it
                still_there = os.path.samestat(os.fstat(descriptor), folder.stat())
            if still_there:
                yield folder
                return
        finally:
            os.close(descriptor)


def check_unclaimed(folder: Path) -> None:
    """Raise ValueError if another process holds a folder (`claimed`). Changes nothing; many may ask at once."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # there is none, or nobody may hold it
        return
    try:
        _lock(descriptor, folder, "LOCK_SH")
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, kind: str, wait: bool = False) -> None:
    """Lock an open folder until it is closed; raise ValueError if another process holds it, without `wait`."""
    try:
        fcntl.flock(descriptor, getattr(fcntl, kind) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise ValueError(f"another process writes to {folder}; wait for it, or name another output") from error


def empty(folder: Path) -> None:
    """Remove everything in a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _refuse_double(key for key, _ in pairs)
    return found


def _refuse_double(keys: Iterable) -> None:
    [(key, _)] = Counter(keys).most_common(1)
    raise ValueError(f"key {key!r} stands twice in one object; remove one")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


class _CoreLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema, without aliases, with unique keys."""

    yaml_implicit_resolvers = {}

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases are not read; write the value out", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            _refuse_double(self.construct_object(key, deep=True) for key, _ in node.value)
        return mapping

    def construct_whole_number(self, node):
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


class _QuotingDumper(yaml.SafeDumper):
    """SafeDumper, which knows version 1.1, with the scalars of 1.2's core schema; without aliases, as they are read."""

    def ignore_aliases(self, data):
        return True


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     list("-+0123456789.")),
):  # fmt: skip
    for _class in (_CoreLoader, _QuotingDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_CoreLoader.add_constructor("tag:yaml.org,2002:int", _CoreLoader.construct_whole_number)
