"""Vectors of one encoder under one policy, in a folder: safetensors files and a `key.json` that says whose they are.

A file holds the key's digest and a checksum of its content. One that another process writes too is the same file: its
name is made of its texts.
"""

import hashlib
import json
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from m2bert.files import write_atomically

from .policies import DocumentVectors

logger = logging.getLogger(__name__)

HASH_BYTES = 32
ABANDONED_SECONDS = 3_600  # a file is written within seconds


class TimedVectors(NamedTuple):
    """Vectors of D texts, and the seconds (D,) float32 that computing each of them took."""

    vectors: DocumentVectors
    seconds: np.ndarray


class Place(NamedTuple):
    """Where a text's vectors are: the file, the text's number there, and its first row there."""

    path: Path
    number: int
    row: int


class Shelf:
    """What is stored for one key. Only hashes and places are kept in memory.

    Args:
        folder: of this key alone; made by the first `write`.
        digest: of the key. Files of another one are not read.
    """

    def __init__(self, folder: Path, digest: str):
        self.folder = folder
        self.digest = digest
        self.places: dict[bytes, Place] = {}
        self._known: set[Path] = set()

    def describe(self, key: dict) -> None:
        """Write `key.json`, which tells people whose vectors these are, and remove what killed writers left."""
        path = self.folder / "key.json"
        if not path.exists():
            text = json.dumps(key, indent=2)
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        for scratch in self.folder.glob(".*"):
            with suppress(FileNotFoundError):  # a writer that lives has renamed it
                if time.time() - scratch.stat().st_mtime > ABANDONED_SECONDS:
                    scratch.unlink()

    def refresh(self) -> None:
        """Take note of files that have come since. One that is damaged is ignored, with a warning."""
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._known):
            self._known.add(path)
            try:
                self.places.update(_index(path, self.digest))
            except (OSError, SafetensorError, ValueError) as error:
                logger.warning("%s is ignored, its vectors are computed again: %s", path, error)

    def write(self, hashes: list[bytes], timed: TimedVectors) -> None:
        """Store the vectors of texts with these hashes in a file of its own."""
        rows, counts, seen = timed.vectors
        tensors = {
            "rows": rows,
            "counts": counts,
            "seen": seen,
            "seconds": timed.seconds,
            "hashes": np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, HASH_BYTES),
        }
        path = self.folder / f"{hashlib.sha256(b''.join(hashes)).hexdigest()[:32]}.safetensors"
        metadata = {"digest": self.digest, "sha256": _sha256(tensors)}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
        self._known.discard(path)  # it may take the place of a broken one
        self.refresh()

    def read(self, hashes: list[bytes]) -> TimedVectors:
        """Return the vectors of texts with these hashes, in their order; no other row is read from disk.

        Raises:
            KeyError: there are none for one of them.
        """
        places = [self.places[each] for each in hashes]
        rows: list = [None] * len(places)
        counts = np.zeros(len(places), dtype=np.int64)
        seen, seconds = np.zeros((2, len(places)), dtype=np.float32)
        for path in sorted({place.path for place in places}):
            wanted = [i for i, place in enumerate(places) if place.path == path]
            numbers = [places[i].number for i in wanted]
            with safe_open(path, "np") as shard:
                counts[wanted] = shard.get_tensor("counts")[numbers]
                seen[wanted] = shard.get_tensor("seen")[numbers]
                seconds[wanted] = shard.get_tensor("seconds")[numbers]
                stored = shard.get_slice("rows")
                for i in wanted:
                    rows[i] = stored[places[i].row : places[i].row + int(counts[i])]
        return TimedVectors(DocumentVectors(np.concatenate(rows), counts, seen), seconds)


def _index(path: Path, digest: str) -> dict[bytes, Place]:
    """Return {hash: place} of a file's texts, after the whole file was read and checked.

    Raises:
        ValueError: the file is another key's, or its content is not what was written.
    """
    with safe_open(path, "np") as shard:
        metadata = shard.metadata() or {}
        if metadata.get("digest") != digest:
            raise ValueError("it was written for another model or policy")
        tensors = {name: shard.get_tensor(name) for name in sorted(shard.keys())}
    if metadata.get("sha256") != _sha256(tensors):
        raise ValueError("its checksum does not hold")
    counts = tensors["counts"]
    firsts = (np.cumsum(counts) - counts).tolist()
    return {bytes(each): Place(path, number, firsts[number]) for number, each in enumerate(tensors["hashes"])}


def _sha256(tensors: dict[str, np.ndarray]) -> str:
    """Return the sha256 of tensors' bytes in the order of their names."""
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()
