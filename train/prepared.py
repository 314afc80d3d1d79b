"""Arrays made once, where the data libraries are, and mapped into memory wherever training runs.

    FOLDER/NAME.safetensors   arrays, a file for each group of them
    FOLDER/tokenizer/         where a run is to start from the folder alone
    FOLDER/prepared.json      sealed (see kept): what the arrays are, with the digests of the other files

Reading a folder needs numpy, torch and safetensors, and transformers for the tokenizer.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file
from safetensors.torch import load_file

from m2bert.files import sync
from m2bert.schema import Schema, checked

from .kept import Manifest, check_manifest, manifest, read_sealed, write_sealed

META = "prepared.json"
TOKENIZER = "tokenizer"

Arrays = dict[str, dict[str, np.ndarray]]  # {file name without suffix: {name: array}}


class Prepared(Schema):
    """Describe a folder in its prepared.json.

    Attributes:
        kind: what reads it: the cache of tokenised text, train/mlm.py or train/opl.py.
        content: what the reader wants to know besides the arrays; goes through JSON.
        files: digests of the other files.
    """

    kind: Literal["text", "mlm", "opl"]
    content: dict[str, Any]
    files: Manifest


def write_prepared(folder: Path, scratch: Path, kind: str, arrays: Arrays, content: dict[str, Any], tokenizer=None):
    """Write a folder in `scratch` and move it into place, where it replaces a damaged or empty one.

    Args:
        scratch: of `kept.building(folder)`.
        arrays: contiguous; mapped ones are written without being read into memory.
    """
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
    """Return the mapped arrays and the content of a folder.

    Raises:
        ValueError: a file is missing or not as it was written, or the folder is of another kind. Names the file.
    """
    meta = checked(Prepared, read_sealed(folder / META), str(folder / META))
    if meta.kind != kind:
        raise ValueError(f"{folder} is prepared for {meta.kind}, not for {kind}; name another folder")
    check_manifest(folder, meta.files)
    names = [Path(file).stem for file in meta.files if file.endswith(".safetensors")]
    tensors = {name: load_file(folder / f"{name}.safetensors") for name in names}
    return {name: {key: one.numpy() for key, one in group.items()} for name, group in tensors.items()}, meta.content
