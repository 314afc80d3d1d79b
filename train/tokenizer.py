"""Tokenizers of a run: loaded from a folder or the Hub, or a WordPiece vocabulary trained on the run's own text."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from m2bert.hub.checkpoint import foreign
from m2bert.model_files import check_model_files

from .verified_files import prepared_once

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ALPHABET = 1000  # most frequent characters that get a token of their own


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a lower-casing WordPiece tokenizer of BERT's kind: [CLS] text [SEP], padding on the right. The same texts
    give the same vocabulary.

    Args:
        texts: iterated over twice: a list, or an object that reads them again.

    The trainer numbers word-inner characters in the order of a hash map and breaks ties by number, so two runs would
    differ; it numbers its special tokens first, so the inner characters are given as such.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    counts = Counter(character for text in texts for character in tokenizer.normalizer.normalize_str(text))
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[:ALPHABET]
    inner = [f"##{character}" for character in frequent if not character.isspace()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS + inner, limit_alphabet=ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BertTokenizerFast(vocab=tokenizer.get_vocab(), do_lower_case=True)


def cached_wordpiece(texts, vocab_size: int, cache: str | Path) -> PreTrainedTokenizerBase:
    """Return `train_wordpiece`, or its result from CACHE/KEY, where an earlier run or process left it.
    `texts.identity()` is JSON that changes when the texts may have changed."""

    def train(scratch: Path):
        logger.info("training a WordPiece tokenizer of %d tokens", vocab_size)
        return {}, {"vocabulary": train_wordpiece(texts, vocab_size).get_vocab()}

    key = hashlib.sha256(json.dumps([texts.identity(), vocab_size]).encode()).hexdigest()[:24]
    _, content = prepared_once(Path(cache) / key, "vocabulary", train)
    return BertTokenizerFast(vocab=content["vocabulary"], do_lower_case=True)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder, or of a repository on the Hub. Its own code is never run.

    Raises ValueError naming the folder, whatever is wrong with its files.
    """
    where = str(path) if Path(path).is_dir() else f"there is no folder {str(path)!r}, and from the Hub"
    with foreign(f"{where} no tokenizer can be loaded; see tokenizer.path and model.path"):
        check_model_files(Path(path))
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[np.ndarray]:
    """Return the token ids of every text, without special tokens and without truncation; int32 arrays."""
    ids = tokenizer(texts, add_special_tokens=False, verbose=False, return_attention_mask=False)["input_ids"]
    return [np.asarray(row, dtype=np.int32) for row in ids]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of what the tokenizer does, without how it last padded or truncated."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description |= {"padding": None, "truncation": None}
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
