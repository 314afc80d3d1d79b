"""Files that runs write and read again, with digests: damage is found before it is used.

A sealed file is JSON that holds the sha256 of the rest of it. A manifest holds the size and the sha256 of files.
A prepared folder holds arrays, made once where the data libraries are and mapped into memory wherever training runs:

    FOLDER/NAME.safetensors   arrays, a file for each group of them
    FOLDER/tokenizer/         where a run is to start from the folder alone
    FOLDER/prepared.json      sealed: what the arrays are, with the digests of the other files
"""

import hashlib
import json
import logging
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file
from safetensors.torch import load_file

from m2bert.files import claimed, digest, empty, read_json, sync, write_atomically
from m2bert.schema import Schema, checked

logger = logging.getLogger(__name__)

SEAL = "sha256"
META = "prepared.json"
TOKENIZER = "tokenizer"

Arrays = dict[str, dict[str, np.ndarray]]  # {file name without suffix: {name: array}}


class FileDigest(Schema):
    """Size in bytes and sha256 of a file."""

    size: int
    sha256: str


Manifest = dict[str, FileDigest]


class Prepared(Schema):
    """Describe a prepared folder in its prepared.json."""

    kind: Literal["text", "vocabulary", "teacher", "mlm", "opl", "align"]  # of a cache, or the run it is prepared for
    content: dict[str, Any]  # what the reader wants to know besides the arrays; goes through JSON
    files: Manifest  # of the other files


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write an object as JSON with its digest; whole or not at all."""
    content = json.loads(json.dumps(content, allow_nan=False))
    text = json.dumps({**content, SEAL: content_digest(content)}, indent=1)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def read_sealed(path: Path) -> dict[str, Any]:
    """Return what `write_sealed` wrote. Raises ValueError naming the file if it is missing or not as it was written."""
    content = read_json(path)
    if content.pop(SEAL, None) != content_digest(content):
        raise ValueError(f"{path} is damaged: its content does not match the sha256 in it")
    return content


def content_digest(content: dict[str, Any]) -> str:
    """Return the sha256 of an object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def manifest(folder: Path, paths: Iterable[Path] | None = None) -> Manifest:
    """Return the sizes and digests of files by their names in a folder: of all in it, or of `paths`."""
    paths = folder.rglob("*") if paths is None else paths
    return {
        path.relative_to(folder).as_posix(): FileDigest(size=path.stat().st_size, sha256=digest(path))
        for path in sorted(paths)
        if path.is_file()
    }


def check_manifest(folder: Path, files: Manifest) -> None:
    """Raise ValueError naming the first file that is missing or not as it was written."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected.size or digest(path) != expected.sha256:
            raise ValueError(f"{path} is missing or damaged: its size or sha256 is not the one it was written with")


@contextmanager
def building(path: Path) -> Iterator[Path]:
    """Claim an empty folder next to `path`, to make in it what is then moved to `path`; remove it in the end.

    Waits while another process of this machine makes the same; look for `path` again in the block. Removes what killed
    processes of this machine left next to `path`. Machines that share a disk do not see each other's claims.
    """
    ending = f".{platform.node()}.unfinished"
    for left in path.parent.glob(f".*{escape(ending)}"):
        with suppress(ValueError), claimed(left):  # ValueError: another process works there
            shutil.rmtree(left)
    with claimed(path.with_name(f".{path.name}{ending}"), wait=True) as scratch:
        try:
            empty(scratch)
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def write_prepared(folder: Path, scratch: Path, kind: str, arrays: Arrays, content: dict[str, Any], tokenizer=None):
    """Write a prepared folder in `scratch`, of `building(folder)`, and move it into place, where it replaces a damaged
    or empty one. Arrays are contiguous; mapped ones are written without being read into memory."""
    new = scratch / "new"
    new.mkdir()
    for name, group in arrays.items():
        save_file(group, new / f"{name}.safetensors")
    if tokenizer is not None:
        tokenizer.save_pretrained(new / TOKENIZER)
    write_sealed(new / META, Prepared(kind=kind, content=content, files=manifest(new)).model_dump())
    for path in (*new.rglob("*"), new):
        sync(path)
    if folder.is_dir():
        folder.rename(scratch / "old")
    try:
        new.rename(folder)
    except OSError:  # another machine was faster
        if not folder.is_dir():
            raise
    sync(folder.parent)


def read_prepared(folder: Path, kind: str) -> tuple[Arrays, dict[str, Any]]:
    """Return the mapped arrays and the content of a prepared folder. Raises ValueError naming a file that is missing or
    not as it was written, or the folder if it is of another kind."""
    meta = checked(Prepared, read_sealed(folder / META), str(folder / META))
    if meta.kind != kind:
        raise ValueError(f"{folder} is prepared for {meta.kind}, not for {kind}; name another folder")
    check_manifest(folder, meta.files)
    names = [Path(file).stem for file in meta.files if file.endswith(".safetensors")]
    tensors = {name: load_file(folder / f"{name}.safetensors") for name in names}
    return {name: {key: one.numpy() for key, one in group.items()} for name, group in tensors.items()}, meta.content


def prepared_once(
    folder: Path, kind: str, make: Callable[[Path], tuple[Arrays, dict[str, Any]]]
) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays and the content of a prepared folder in a cache. If it is missing or damaged, one process of
    this machine writes what `make` returns, while the others wait; `make` gets a scratch folder."""

    def read():
        try:
            return read_prepared(folder, kind) if folder.is_dir() else None
        except ValueError as error:
            logger.warning("%s; it is made again", error)

    found = read()
    if found is None:
        with building(folder) as scratch:
            found = read()
            if found is None:
                write_prepared(folder, scratch, kind, *make(scratch))
                found = read_prepared(folder, kind)
    return found
