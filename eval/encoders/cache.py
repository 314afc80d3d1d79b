"""Vectors kept on disk by what decides them: an interrupted evaluation resumes, a repeated one computes nothing.

Under the root one folder for each encoder, policy, longest input and kind of text (see `Shelf`); in it every text is
known by its sha256. Several processes (`accelerate launch`) divide the missing texts and then read each other's.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from ..progress import Processes, counted
from .fingerprint import package_versions
from .policies import DocumentVectors, Policy, embed_beginning
from .protocol import Encoder
from .vector_shelf import Shelf, TimedVectors

FORMAT = 2  # to be raised when a policy gives other vectors than before, or files another form
PORTION_CHARS = 800_000  # some 200,000 tokens: computed, then written, before the next


def default_cache_folder() -> Path:
    """$M2BERT_CACHE, else m2bert/vectors in the cache of Hugging Face's libraries."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("M2BERT_CACHE") or Path(HF_HOME) / "m2bert" / "vectors")


class VectorStore:
    """Computes vectors once.

    Args:
        folder: root of the stored vectors; None keeps nothing. All processes of a run must see it.
    """

    def __init__(self, folder: str | Path | None):
        self.folder = None if folder is None else Path(folder)
        self._shelves: dict[Path, Shelf] = {}

    def embed(self, encoder: Encoder, policy: Policy | None, texts: list[str]) -> TimedVectors:
        """The vectors of texts, equal texts computed once, and the seconds that each took when it was computed.

        Every process of a run has to make the same calls, and gets all vectors.

        Args:
            policy: for documents; None for queries, of which a model reads as much as it takes.

        Raises:
            ValueError: the policy cannot work with the encoder; or a vector is not finite, and the error says of
                which text. Such vectors are not kept.
        """
        if policy is not None:
            policy.check(encoder)
        hashes = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        unique = dict(zip(hashes, texts, strict=True))
        processes = Processes()
        with self._root(processes) as root:
            if root is None or not texts:
                timed = _compute(encoder, policy, list(unique.values()))
            else:
                shelf = self._shelf(root, _key(encoder, policy), encoder.name, processes)
                _fill(shelf, encoder, policy, unique, processes)
                timed = shelf.read(list(unique))
        if policy is not None:
            timed = TimedVectors(policy.combine(timed.vectors), timed.seconds)
        places = {each: place for place, each in enumerate(unique)}
        return timed if len(unique) == len(texts) else _chosen(timed, [places[each] for each in hashes])

    @contextmanager
    def _root(self, processes: Processes) -> Iterator[Path | None]:
        """Where to store. Several processes need a place even if nothing is to be kept."""
        if self.folder is not None or processes.world == 1:
            yield self.folder
            return
        with tempfile.TemporaryDirectory() if processes.rank == 0 else nullcontext() as own:
            yield Path(processes.from_first(own))
            processes.wait()  # until all have read it

    def _shelf(self, root: Path, key: dict, name: str, processes: Processes) -> Shelf:
        """The shelf of a key, up to date and the same in all processes."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        folder = root / digest
        if folder not in self._shelves:
            self._shelves[folder] = Shelf(folder, digest)
            if processes.rank == 0:
                self._shelves[folder].describe({"name": name, **key, "versions": package_versions()})
            processes.wait()
        self._shelves[folder].refresh()
        processes.wait()  # nobody writes before everybody knows what is missing
        return self._shelves[folder]


def _key(encoder: Encoder, policy: Policy | None) -> dict:
    """What decides a vector, beside the text."""
    return {
        "format": FORMAT,
        "encoder": encoder.fingerprint,
        "role": "query" if policy is None else "document",
        "policy": None if policy is None else policy.stored.spec,
        "max_tokens": encoder.max_tokens if policy is None else policy.input_tokens(encoder),
    }


def _fill(
    shelf: Shelf,
    encoder: Encoder,
    policy: Policy | None,
    texts: dict[bytes, str],
    processes: Processes,
) -> None:
    """Compute and store what is missing, longest texts first, each process its share."""
    missing = sorted((each for each in texts if each not in shelf.places), key=lambda each: -len(texts[each]))
    mine = missing[processes.rank :: processes.world]
    with counted(sum(len(texts[each]) for each in mine), encoder.name, "text", shown_total=len(mine)) as count:
        for portion in _portions(mine, texts):
            chosen = [texts[each] for each in portion]
            with count.part(sum(map(len, chosen))):
                shelf.write(portion, _compute(encoder, policy, chosen))
    processes.wait()
    shelf.refresh()


def _portions(hashes: list[bytes], texts: dict[bytes, str]) -> Iterator[list[bytes]]:
    """Consecutive lists of PORTION_CHARS characters, or of one text that is longer."""
    portion: list[bytes] = []
    chars = 0
    for each in hashes:
        if portion and chars + len(texts[each]) > PORTION_CHARS:
            yield portion
            portion, chars = [], 0
        portion.append(each)
        chars += len(texts[each])
    if portion:
        yield portion


def _compute(encoder: Encoder, policy: Policy | None, texts: list[str]) -> TimedVectors:
    """Return the vectors of the policy that is stored. The seconds are those of all texts, divided by characters.

    Raises:
        ValueError: a vector is not finite.
    """
    start = time.perf_counter()
    vectors = embed_beginning(encoder, texts, "query", None) if policy is None else policy.stored.embed(encoder, texts)
    seconds = time.perf_counter() - start
    finite = np.isfinite(vectors.rows).all(axis=1)
    if not finite.all():
        text = texts[np.repeat(np.arange(len(texts)), vectors.counts)[finite.argmin()]]
        broken = f"the vector of the text that begins {text[:60]!r} is not finite ({(~finite).sum()} of {len(finite)})"
        raise ValueError(f"encoder {encoder.name!r}: {broken}; it is broken, or computes in too narrow a dtype")
    chars = np.array([1 + len(text) for text in texts], dtype=np.float32)
    return TimedVectors(vectors, seconds * chars / chars.sum())


def _chosen(timed: TimedVectors, places: list[int]) -> TimedVectors:
    """The texts at these places, in this order."""
    (rows, counts, seen), seconds = timed
    firsts = np.cumsum(counts) - counts
    wanted = np.concatenate([np.arange(firsts[place], firsts[place] + counts[place]) for place in places])
    return TimedVectors(DocumentVectors(rows[wanted], counts[places], seen[places]), seconds[places])
