"""Local text tokenised once, kept on disk and mapped into memory.

    CACHE/KEY/tokens.bin    token ids of all documents, one after another, without special tokens
    CACHE/KEY/lengths.npy   (D,) int64, tokens of each document
    CACHE/KEY/hashes.npy    (D,) uint64, from the sha256 of each text
    CACHE/KEY/meta.json     sealed (see kept), with the digests of the others

KEY stands for the files as they are now, how they are read, and the tokenizer; another of these makes another folder.
"""

import hashlib
import json
import logging
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from m2bert.files import sync
from m2bert.schema import Schema, checked

from ..kept import Manifest, building, check_manifest, manifest, read_sealed, write_sealed
from ..tokenizer import encode_all
from .text_files import TextFiles

logger = logging.getLogger(__name__)

CHARS_AT_ONCE = 2**20  # tokenised in one call: the tokenizer needs about 50 bytes of memory for a character
HELD_OUT_SHARE = 0.01  # of the documents, where the validation is carved out of the training text
META = "meta.json"
FORMAT = 2


class Meta(Schema):
    """What meta.json of a store holds, beside its own sha256.

    Attributes:
        dtype: of the tokens.
        fingerprint: see TokenStore.
        documents, tokens: how many there are. empty: how many texts without tokens were left out.
        texts: the files that were read.
        files: digests of the store's other files.
    """

    dtype: Literal["uint16", "uint32"]
    fingerprint: str
    documents: int
    tokens: int
    empty: int
    texts: list[str]
    files: Manifest


@dataclass(frozen=True)
class TokenStore:
    """Documents as token ids, without special tokens.

    Args:
        tokens: (T,) ids of all documents, uint16 or uint32, mapped.
        starts, lengths, hashes: (D,) of each document: first token, number of tokens, hash of its text.
        fingerprint: sha256 of the documents' tokens, in order; of a part, that of the whole.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    fingerprint: str

    def carve(self, name: str) -> tuple["TokenStore", "TokenStore"]:
        """(training, validation): validation is the hundredth of the documents whose hashes are smallest, or the one
        document with the smallest hash. Equal texts are always on the same side.

        Raises:
            ValueError: nothing is left to train on. It names the source, `name`.
        """
        held_out = self.hashes < np.uint64(carve_limit([int(self.hashes.min())]))
        if held_out.all():
            raise ValueError(
                f"source {name}: {len(held_out)} document(s), all of them held out for validation, so that none is "
                "left to train on; cut the text into several documents, or make a folder of it with a validation split"
            )
        return self.part(~held_out), self.part(held_out)

    def part(self, chosen: np.ndarray) -> "TokenStore":
        """The documents where `chosen` (D,) is true."""
        return replace(self, starts=self.starts[chosen], lengths=self.lengths[chosen], hashes=self.hashes[chosen])

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """How often each token occurs; (vocab_size,) int64."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for first in range(0, len(self.starts), 1024):
            chosen = slice(first, first + 1024)
            documents = zip(self.starts[chosen], self.lengths[chosen], strict=True)
            counts += np.bincount(np.concatenate([self.tokens[s : s + n] for s, n in documents]), minlength=vocab_size)
        return counts


def text_hash(text: str) -> int:
    """64 bits of the sha256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def held_out_limit() -> int:
    """Texts whose hash is smaller are validation, where it is carved out of very many."""
    return int(HELD_OUT_SHARE * 2**64)


def carve_limit(hashes: Iterable[int]) -> int:
    """The `held_out_limit`, or, where none of these texts is below it, the limit that holds out the one with the
    smallest hash. Hashes are read up to the first one below."""
    smallest = 2**64
    for one in hashes:
        if one < held_out_limit():
            return held_out_limit()
        smallest = min(smallest, one)
    return smallest + 1


def open_store(texts: TextFiles, tokenizer, cache: str | Path) -> TokenStore:
    """The tokens of texts, from the cache or tokenised into it. Empty documents are left out and counted.

    Raises:
        ValueError: the files hold no text.
        OSError: the cache cannot be written. Nothing half-written is left in it.
    """
    identity = json.dumps([FORMAT, texts.identity(), tokenizer_fingerprint(tokenizer)])
    folder = Path(cache) / hashlib.sha256(identity.encode()).hexdigest()[:24]
    store = read_store(folder)
    if store is None:
        with building(folder) as scratch:
            store = read_store(folder) or build_store(texts, tokenizer, folder, scratch)
    return store


def read_store(folder: Path) -> TokenStore | None:
    """A store as it was written; None, with a warning, if it is damaged, and without one if it is not there."""
    if not folder.is_dir():
        return None
    try:
        meta = checked(Meta, read_sealed(folder / META), str(folder / META))
        check_manifest(folder, meta.files)
    except ValueError as error:
        logger.warning("%s; the text is tokenised again", error)
        return None
    lengths = np.load(folder / "lengths.npy")
    return TokenStore(
        tokens=np.memmap(folder / "tokens.bin", dtype=meta.dtype, mode="r"),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        hashes=np.load(folder / "hashes.npy", mmap_mode="r"),
        fingerprint=meta.fingerprint,
    )


def build_store(texts: TextFiles, tokenizer, folder: Path, scratch: Path) -> TokenStore:
    """Make a store in the folder `scratch`, and move it to `folder`, in the place of a damaged one."""
    new = scratch / "new"
    new.mkdir()
    build(texts, tokenizer, new)
    if folder.is_dir():
        folder.rename(scratch / "damaged")
    try:
        new.rename(folder)
    except OSError:  # another machine was faster
        if not folder.is_dir():
            raise
    sync(folder.parent)
    return read_store(folder)


def build(texts: TextFiles, tokenizer, folder: Path):
    """Tokenise texts into the files of a store."""
    dtype = "uint16" if max(tokenizer.get_vocab().values()) < 2**16 else "uint32"
    names = ", ".join(str(path) for path in texts.files[:3]) + (" .." if len(texts.files) > 3 else "")
    lengths, hashes, empty, digest = array("q"), array("Q"), 0, hashlib.sha256()
    bar = tqdm(desc=f"tokenising {texts.files[0]}", total=texts.total_bytes, unit="B", unit_scale=True)
    with bar, (folder / "tokens.bin").open("wb") as file:
        for batch, size in batches_of_texts(texts):
            for text, ids in zip(batch, encode_all(tokenizer, batch), strict=True):
                if not len(ids):
                    empty += 1
                    continue
                ids = ids.astype(dtype)
                file.write(ids.tobytes())
                digest.update(len(ids).to_bytes(8, "big") + ids.astype("<u4").tobytes())
                lengths.append(len(ids))
                hashes.append(text_hash(text))
            bar.update(round(size))
    if not lengths:
        raise ValueError(f"source {names} has no text ({empty} empty documents)")
    np.save(folder / "lengths.npy", np.array(lengths, dtype=np.int64))
    np.save(folder / "hashes.npy", np.array(hashes, dtype=np.uint64))
    for path in folder.iterdir():
        sync(path)
    meta = Meta(dtype=dtype, fingerprint=digest.hexdigest(), documents=len(lengths), tokens=sum(lengths), empty=empty,
                texts=[str(path) for path in texts.files], files=manifest(folder))  # fmt: skip
    write_sealed(folder / META, meta.model_dump())
    logger.info("%s: %d documents, %d tokens, %d empty ones left out", names, len(lengths), meta.tokens, empty)


def batches_of_texts(texts: TextFiles) -> Iterator[tuple[list[str], float]]:
    """Texts of about CHARS_AT_ONCE characters together, and the bytes of file they stand for."""
    batch, chars, size = [], 0, 0.0
    for text, share in texts.read():
        batch.append(text)
        chars, size = chars + len(text), size + share
        if chars >= CHARS_AT_ONCE:
            yield batch, size
            batch, chars, size = [], 0, 0.0
    if batch:
        yield batch, size


def tokenizer_fingerprint(tokenizer) -> str:
    """sha256 of what the tokenizer does; how it last padded or truncated is no part of that."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description |= {"padding": None, "truncation": None}
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
