"""Counting tokens without a model: a tokenizer is enough to say how long texts are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

BATCH_TEXTS = 32  # long documents: a batch's encodings take more memory than its texts

TokenCounter = Callable[[list[str]], np.ndarray]  # n texts -> (n,) int


def load_token_counter(name: str) -> TokenCounter:
    """Tokens of texts as they stand: no special tokens, no prompt, nothing truncated.

    Args:
        name: a `tokenizer.json`, a folder that holds one (a model folder does), or a Hub id.

    Raises:
        ValueError: there is no `tokenizer.json`, or it cannot be read.
    """
    from tokenizers import Tokenizer

    path = _tokenizer_file(name)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"tokenizer {path} cannot be read: {' '.join(str(error).split())}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count_tokens(texts: list[str]) -> np.ndarray:
        counts: list[int] = []
        batches = range(0, len(texts), BATCH_TEXTS)
        for start in tqdm(batches, desc="counting tokens", unit="batch", disable=len(batches) < 4):
            batch = texts[start : start + BATCH_TEXTS]
            counts += [len(encoding) for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        return np.array(counts, dtype=np.int64)

    return count_tokens


def _tokenizer_file(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            raise ValueError(f"tokenizer {name!r} is a folder without tokenizer.json; give a model folder or a Hub id")
        return path / "tokenizer.json"
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "tokenizer.json"))
    except (OSError, ValueError) as error:  # what the Hub's errors derive from
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"tokenizer {name!r} is no file, no folder and not on the Hub: {reason}") from error
