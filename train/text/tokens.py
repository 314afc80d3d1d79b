"""Local text tokenized once, kept on disk and mapped into memory.

A store is a prepared folder (`kept`): CACHE/KEY/documents.safetensors with the tokens of all documents, one after
another, their lengths and the hashes of their texts. KEY depends on the files as they are now, how they are read, and
the tokenizer. Nothing of it needs `datasets`, whose own cache has no digests.
"""

import hashlib
import json
import logging
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..tokenizer import encode_all, tokenizer_fingerprint
from ..verified_files import Arrays, prepared_once
from .sources import TextFiles

logger = logging.getLogger(__name__)

CHARS_AT_ONCE = 2**20  # tokenized in one call: the tokenizer needs about 50 bytes of memory for a character
HELD_OUT_LIMIT = int(0.01 * 2**64)  # texts with a smaller hash are held out, where the validation is carved
FORMAT = 3


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

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], fingerprint: str) -> "TokenStore":
        """Make a store of the arrays tokens, lengths and hashes."""
        return cls(starts=np.cumsum(arrays["lengths"]) - arrays["lengths"], fingerprint=fingerprint, **arrays)

    def carve(self) -> tuple["TokenStore", "TokenStore"]:
        """Return the documents to train on and those held out (`is_held_out`)."""
        held_out = is_held_out(self.hashes)
        return self.part(~held_out), self.part(held_out)

    def part(self, chosen: np.ndarray) -> "TokenStore":
        """Return the documents where `chosen` (D,) is true."""
        return replace(self, starts=self.starts[chosen], lengths=self.lengths[chosen], hashes=self.hashes[chosen])

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """Return how often each token occurs; (vocab_size,) int64."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for first in range(0, len(self.starts), 1024):
            chosen = slice(first, first + 1024)
            documents = zip(self.starts[chosen], self.lengths[chosen], strict=True)
            counts += np.bincount(np.concatenate([self.tokens[s : s + n] for s, n in documents]), minlength=vocab_size)
        return counts


def text_hash(text: str) -> int:
    """Return 64 bits of the sha256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_held_out(hashes: np.ndarray) -> np.ndarray:
    """Return which of the texts with these hashes are validation, where it is carved out of the training split: the
    hundredth with the smallest hashes, or the one with the smallest. Equal texts are on the same side."""
    chosen = hashes < np.uint64(HELD_OUT_LIMIT)
    return chosen if chosen.any() else hashes == hashes.min()


def open_store(texts: TextFiles, tokenizer, cache: str | Path) -> TokenStore:
    """Return the tokens of texts, from CACHE/KEY or tokenized into it. A damaged store is made again."""
    identity = json.dumps([FORMAT, texts.identity(), tokenizer_fingerprint(tokenizer)])
    folder = Path(cache) / hashlib.sha256(identity.encode()).hexdigest()[:24]
    arrays, content = prepared_once(folder, "text", lambda scratch: build_store(texts, tokenizer, scratch))
    return TokenStore.of(arrays["documents"], content["fingerprint"])


def build_store(texts: TextFiles, tokenizer, scratch: Path) -> tuple[Arrays, dict[str, str]]:
    """Return the arrays of a store, and its fingerprint. Empty documents are left out and counted. The tokens are
    mapped from a file in `scratch`, since they may not fit into memory."""
    dtype = "uint16" if max(tokenizer.get_vocab().values()) < 2**16 else "uint32"
    names = ", ".join(str(path) for path in texts.files[:3]) + (" .." if len(texts.files) > 3 else "")
    lengths, hashes, empty, digest = array("q"), array("Q"), 0, hashlib.sha256()
    bar = tqdm(desc=f"tokenizing {texts.files[0]}", unit="text", unit_scale=True)
    with bar, (scratch / "tokens.bin").open("wb") as file:
        for batch in batches_of_texts(texts):
            for text, ids in zip(batch, encode_all(tokenizer, batch), strict=True):
                if not len(ids):
                    empty += 1
                    continue
                file.write(ids.astype(dtype).tobytes())
                digest.update(len(ids).to_bytes(8, "big") + ids.astype("<u4").tobytes())
                lengths.append(len(ids))
                hashes.append(text_hash(text))
            bar.update(len(batch))
    if not lengths:
        raise ValueError(f"source {names} has no text ({empty} empty documents)")
    logger.info("%s: %d documents, %d tokens, %d empty ones left out", names, len(lengths), sum(lengths), empty)
    arrays = {
        "tokens": np.memmap(scratch / "tokens.bin", dtype, "r"),
        "lengths": np.array(lengths, dtype=np.int64),
        "hashes": np.array(hashes, dtype=np.uint64),
    }
    return {"documents": arrays}, {"fingerprint": digest.hexdigest()}


def batches_of_texts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield texts of about CHARS_AT_ONCE characters together."""
    batch, chars = [], 0
    for text in texts:
        batch.append(text)
        chars += len(text)
        if chars >= CHARS_AT_ONCE:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
