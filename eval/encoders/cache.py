"""Store vectors on disk, so that an interrupted evaluation resumes and a repeated one computes nothing.

The key of a vector is the combination of encoder, policy, longest input and kind of text. The root holds one folder for
each key. In it are safetensors files, which name every text by its sha256, and `key.json`, which shows the key to
people. Several processes (`accelerate launch`) divide the missing texts among themselves, and then read each other's
files.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from m2bert.files import write_atomically
from m2bert.records import installed_versions

from ..progress import Processes, counted
from .fingerprint import PACKAGES
from .policies import DocumentVectors, Policy, compute_divisions, embed_beginning, same_pass
from .protocol import Encoder

logger = logging.getLogger(__name__)

FORMAT = 2  # raise it when a policy gives other vectors than before, or when files change their form
PORTION_CHARS = 800_000  # some 200,000 tokens; a portion of texts is written before the next is computed
MEMORY_BYTES = 2**26  # if vectors are kept in memory alone, all are dropped beyond this size
HASH_BYTES = 32  # length of a sha256
TENSORS = {"rows", "counts", "seen", "seconds", "hashes"}  # the tensors of every file
ABANDONED_SECONDS = 3_600  # a partial file of this age has no writer: writing takes seconds


class TimedVectors(NamedTuple):
    """Vectors of D texts, and the seconds (D,) float32 that each text took to compute."""

    vectors: DocumentVectors
    seconds: np.ndarray


def default_cache_folder() -> Path:
    """Return $M2BERT_CACHE, else m2bert/vectors in the cache of Hugging Face's libraries."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("M2BERT_CACHE") or Path(HF_HOME) / "m2bert" / "vectors")


def portions(texts: list[str], chars: int, count: int | None = None) -> Iterator[slice]:
    """Yield slices of consecutive texts: at most `count` texts, with at most `chars` characters or one longer text."""
    start = size = 0
    for i, text in enumerate(texts):
        if i > start and (size + len(text) > chars or i - start == count):
            yield slice(start, i)
            start, size = i, 0
        size += len(text)
    if start < len(texts):
        yield slice(start, len(texts))


class VectorStore:
    """Compute the vectors of a text once, and read them from then on.

    Args:
        folder: root of the stored vectors, which all processes of a run must reach. None keeps a few vectors in memory
            (`MEMORY_BYTES`) and none on disk.
    """

    def __init__(self, folder: str | Path | None):
        self.folder = None if folder is None else Path(folder)
        self._files: dict[Path, VectorFiles] = {}
        self._memory: dict[str, VectorMemory] = {}

    def embed(
        self, encoder: Encoder, policy: Policy | None, texts: list[str], beside: Sequence[Policy] = ()
    ) -> TimedVectors:
        """Return the vectors of texts, and the seconds that each text took when its vectors were computed.

        Equal texts are computed once. Every process of a run has to make the same calls, and gets all vectors.

        Args:
            policy: the policy for documents. None stands for queries, which are truncated to the encoder's maximum.
            beside: policies that will be asked for next. Those that can use the same pass over the texts are computed
                now. Each of them is given all seconds of the pass.

        Raises:
            ValueError: a vector is not finite. The error names its text, and no vector of its portion is kept.
        """
        if policy is not None:
            policy.check(encoder)
        hashes = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        unique = dict(zip(hashes, texts, strict=True))
        processes = Processes()
        with self._root(processes) as root:
            if not texts:
                timed = _compute(encoder, [policy], [])[0]
            else:
                shelves = {policy: self._shelf(root, encoder, policy, processes)}
                places = shelves[policy].places
                missing = {text_hash: text for text_hash, text in unique.items() if text_hash not in places}
                if policy is not None and (self.folder is not None or root is None):
                    for other in same_pass(encoder, policy, beside):
                        shelf = self._shelf(root, encoder, other, processes)
                        if not missing.keys() & shelf.places.keys():
                            shelves[other] = shelf
                for portion, vectors_by_policy in _portions_of(encoder, list(shelves), missing, processes):
                    for shelf, timed in zip(shelves.values(), vectors_by_policy, strict=True):
                        shelf.write(portion, timed)
                processes.wait()
                shelves[policy].refresh()
                timed = shelves[policy].read(hashes)
                if sum(memory.bytes for memory in self._memory.values()) > MEMORY_BYTES:
                    self._memory.clear()
        return timed if policy is None else TimedVectors(policy.combine(timed.vectors), timed.seconds)

    @contextmanager
    def _root(self, processes: Processes) -> Iterator[Path | None]:
        """Yield the folder to store in. Several processes need one to exchange vectors, even if none is to be kept."""
        if self.folder is not None or processes.world == 1:
            yield self.folder
            return
        with tempfile.TemporaryDirectory() if processes.rank == 0 else nullcontext() as own:
            yield Path(processes.from_first(own))
            processes.wait()  # the folder is removed after all have read it

    def _shelf(
        self, root: Path | None, encoder: Encoder, policy: Policy | None, processes: Processes
    ) -> "VectorFiles | VectorMemory":
        """Return the stored vectors of one key. The key is all that decides a text's vectors, except the text.

        All processes see the same vectors.
        """
        key = {
            "format": FORMAT,
            "encoder": encoder.fingerprint,
            "role": "query" if policy is None else "document",
            "policy": None if policy is None else policy.stored.spec,
            "max_tokens": encoder.max_tokens if policy is None else policy.input_tokens(encoder),
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        if root is None:
            return self._memory.setdefault(digest, VectorMemory())
        folder = root / digest
        if folder not in self._files:
            self._files[folder] = VectorFiles(folder, digest)
            if processes.rank == 0:
                self._files[folder].describe({"name": encoder.name, **key, "versions": installed_versions(PACKAGES)})
            processes.wait()
        self._files[folder].refresh()
        processes.wait()  # nobody writes before everybody knows what is missing
        return self._files[folder]


class VectorMemory:
    """Vectors of one key in memory, with the methods of `VectorFiles`.

    They matter even if nothing is kept on disk: a run asks for the same queries under every policy.

    Attributes:
        places: {hash of a text: the number of the `write` that brought it}.
        bytes: size of all rows.
    """

    def __init__(self):
        self.places: dict[bytes, int] = {}
        self.bytes = 0
        self._parts: list[tuple[list[bytes], TimedVectors]] = []

    def refresh(self) -> None:
        """Do nothing: only this process writes here."""

    def write(self, hashes: list[bytes], timed: TimedVectors) -> None:
        """Keep the vectors of texts with these hashes."""
        self.places.update(dict.fromkeys(hashes, len(self._parts)))
        self.bytes += timed.vectors.rows.nbytes
        self._parts.append((hashes, timed))

    def read(self, hashes: list[bytes]) -> TimedVectors:
        """Return the vectors of texts with these hashes, in their order."""
        chosen = sorted({self.places[each] for each in hashes})
        return _gathered([self._parts[number] for number in chosen], hashes)


class VectorFiles:
    """Vectors of one key in files. Only the hashes of the texts, and which file holds each, are in memory.

    Each file holds the key's digest and a checksum of its content. Its name is a hash of its texts, so that processes
    that write the same texts write the same file.

    Attributes:
        places: {hash of a text: its file}.
    """

    def __init__(self, folder: Path, digest: str):
        self.folder = folder
        self.digest = digest
        self.places: dict[bytes, Path] = {}
        self._known: set[Path] = set()

    def describe(self, key: dict) -> None:
        """Write `key.json`, and remove the partial files of writers that were killed."""
        path = self.folder / "key.json"
        if not path.exists():
            text = json.dumps(key, indent=2)
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        for scratch in self.folder.glob(".*.partial"):  # `write_atomically` makes them
            with suppress(FileNotFoundError):  # its writer may have finished and removed it
                if time.time() - scratch.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(scratch, ignore_errors=True)

    def refresh(self) -> None:
        """Index the files that are new since the last call. A damaged file is ignored, with a warning."""
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._known):
            self._known.add(path)
            try:
                self.places.update(dict.fromkeys(self._load(path)[0], path))
            except (OSError, SafetensorError, ValueError) as error:
                logger.warning("%s is ignored, its vectors are computed again: %s", path, error)

    def write(self, hashes: list[bytes], timed: TimedVectors) -> None:
        """Store the vectors of texts with these hashes in a file."""
        rows, counts, seen = timed.vectors
        hashed = np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, HASH_BYTES)
        tensors = {"rows": rows, "counts": counts, "seen": seen, "seconds": timed.seconds, "hashes": hashed}
        path = self.folder / f"{hashlib.sha256(b''.join(hashes)).hexdigest()[:32]}.safetensors"
        metadata = {"digest": self.digest, "sha256": _checksum(tensors)}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
        self._known.discard(path)  # it may take the place of a broken one
        self.refresh()

    def read(self, hashes: list[bytes]) -> TimedVectors:
        """Return the vectors of texts with these hashes, in their order."""
        by_file: dict[Path, list[bytes]] = {}
        for text_hash in dict.fromkeys(hashes):
            by_file.setdefault(self.places[text_hash], []).append(text_hash)
        return _gathered([(some, _gathered([self._load(path)], some)) for path, some in by_file.items()], hashes)

    def _load(self, path: Path) -> tuple[list[bytes], TimedVectors]:
        """Return the hashes of a file's texts and their vectors.

        Raises ValueError if the file is of another key, or differs from what was written.
        """
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            expected = {"digest": self.digest, "sha256": _checksum(tensors)}
            if tensors.keys() != TENSORS or file.metadata() != expected:
                raise ValueError("it is damaged, or was written for another model or policy")
        vectors = DocumentVectors(tensors["rows"], tensors["counts"], tensors["seen"])
        return list(map(bytes, tensors["hashes"])), TimedVectors(vectors, tensors["seconds"])


def _portions_of(
    encoder: Encoder, policies: Sequence[Policy | None], missing: dict[bytes, str], processes: Processes
) -> Iterator[tuple[list[bytes], list[TimedVectors]]]:
    """Compute the vectors of this process's share of the missing texts, longest first, a portion at a time.

    Yield the hashes of a portion and its vectors under each policy.
    """
    longest_first = sorted(missing, key=lambda text_hash: -len(missing[text_hash]))
    hashes = longest_first[processes.rank :: processes.world]
    texts = [missing[text_hash] for text_hash in hashes]
    with counted(sum(map(len, texts)), encoder.name, "text", shown_total=len(texts)) as count:
        for portion in portions(texts, PORTION_CHARS):
            with count.part(sum(map(len, texts[portion]))):
                timed = _compute(encoder, policies, texts[portion])
            yield hashes[portion], timed


def _compute(encoder: Encoder, policies: Sequence[Policy | None], texts: list[str]) -> list[TimedVectors]:
    """Return the vectors to store under each policy. The texts share the measured seconds by their characters."""
    start = time.perf_counter()
    if policies[0] is None:
        found = [embed_beginning(encoder, texts, "query", None)]
    elif len(policies) == 1:
        found = [policies[0].stored.compute(encoder, texts)]
    else:
        found = compute_divisions(encoder, policies, texts)
    seconds = time.perf_counter() - start
    for vectors in found:
        _check_finite(encoder, vectors, texts)
    chars = np.array([1 + len(text) for text in texts], dtype=np.float32)
    return [TimedVectors(vectors, seconds * chars / chars.sum()) for vectors in found]


def _check_finite(encoder: Encoder, vectors: DocumentVectors, texts: list[str]) -> None:
    """Raise ValueError if a vector is not finite; the message shows the beginning of its text."""
    finite = np.isfinite(vectors.rows).all(axis=1)
    if not finite.all():
        text = texts[np.repeat(np.arange(len(texts)), vectors.counts)[finite.argmin()]]
        problem = f"the vector of the text that begins {text[:60]!r} is not finite ({(~finite).sum()} of {len(finite)})"
        raise ValueError(f"encoder {encoder.name!r}: {problem}; it is broken, or computes in too narrow a dtype")


def _gathered(parts: list[tuple[list[bytes], TimedVectors]], wanted: list[bytes]) -> TimedVectors:
    """Return the vectors of the texts with the wanted hashes, in this order.

    Args:
        parts: pairs of the hashes of texts and their vectors, which together hold all wanted texts.
    """
    available = [text_hash for hashes, _ in parts for text_hash in hashes]
    places = {text_hash: place for place, text_hash in enumerate(available)}
    rows, counts, seen = map(np.concatenate, zip(*(timed.vectors for _, timed in parts), strict=True))
    seconds = np.concatenate([timed.seconds for _, timed in parts])
    chosen = [places[text_hash] for text_hash in wanted]
    firsts = np.cumsum(counts) - counts
    chosen_rows = np.concatenate([np.arange(firsts[place], firsts[place] + counts[place]) for place in chosen])
    return TimedVectors(DocumentVectors(rows[chosen_rows], counts[chosen], seen[chosen]), seconds[chosen])


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    """Return the sha256 of tensors' bytes in the order of their names."""
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()
