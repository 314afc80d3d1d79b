"""Vectors of one encoder under one policy, in a folder: safetensors files and a `key.json` that says whose they are."""

import hashlib
import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from m2bert.files import write_atomically

from .policies import DocumentVectors

logger = logging.getLogger(__name__)

HASH_BYTES = 32


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
    """What is stored for one key. Only hashes and places are held in memory.

    Args:
        folder: of this key alone; made by the first `write`.
        digest: of the key. Files of another one are not read.
    """

    def __init__(self, folder: Path, digest: str):
        self.folder = folder
        self.digest = digest
        self.places: dict[bytes, Place] = {}
        self._known: set[Path] = set()

    def claim(self, description: dict) -> None:
        """Write `key.json`. If it is there and says something else, everything beside it is removed: whose vectors
        they are is not certain."""
        path = self.folder / "key.json"
        expected = json.dumps(description | {"digest": self.digest}, indent=2)
        if path.exists() and _read_digest(path) != self.digest:
            logger.warning("%s does not belong to the vectors beside it; they are computed again", path)
            for shard in self.folder.glob("*.safetensors"):
                shard.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        if not path.exists():
            write_atomically(path, lambda temporary: temporary.write_text(expected, encoding="utf-8"))

    def refresh(self) -> None:
        """Take note of files that have come since. One that cannot be read is ignored, with a warning."""
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
        metadata = {"digest": self.digest}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
        self._known.discard(path)  # it may take the place of a broken one
        self.refresh()

    def read(self, hashes: list[bytes]) -> TimedVectors:
        """The vectors of texts with these hashes, in their order; no other row is read from disk.

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
    """{hash: place} of a file's texts.

    Raises:
        ValueError: the file is another key's, or its parts do not fit together.
    """
    with safe_open(path, "np") as shard:
        if (shard.metadata() or {}).get("digest") != digest:
            raise ValueError("it was written for another model or policy")
        hashes, counts = shard.get_tensor("hashes"), shard.get_tensor("counts")
        if len(hashes) != len(counts) or shard.get_slice("rows").get_shape()[0] != counts.sum():
            raise ValueError("its parts do not fit together")
    firsts = (np.cumsum(counts) - counts).tolist()
    return {bytes(each): Place(path, number, firsts[number]) for number, each in enumerate(hashes)}


def _read_digest(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
