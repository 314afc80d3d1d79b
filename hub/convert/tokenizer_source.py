"""The tokenizer of a converted model: the one that was named, the source's own, or the one it was trained with."""

import logging
import shutil
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedConfig, PreTrainedTokenizerBase

from m2bert.model_files import check_model_files

from ..folder import check_tokenizer
from .source import TOKENIZER_FILES, VOCABULARIES, Source, fetch, is_hub_id, list_files

logger = logging.getLogger(__name__)

ORIGINAL = "google-bert/bert-base-uncased"
ORIGINAL_IDS = 30522  # the research code rounds its vocabulary up to a multiple of 8
SENTENCE = "The committee met on Tuesday to discuss the budget."
NONE = "the folder is written without a tokenizer, and so embeds no text: %s; name one with --tokenizer"


def find_tokenizer(
    named: str | None, source: Source, config: PreTrainedConfig
) -> tuple[PreTrainedTokenizerBase | None, str | None]:
    """
    Args:
        named: a folder, a vocab.txt or a Hub id; None: the source's own, else the original's from the Hub.

    Returns:
        The tokenizer and where it is from, for the record; (None, None) with a warning where there is none.

    Raises:
        ValueError: the named one is not there; or it does not work, gives ids that the model has no embedding for, or
            pads with another id than the model.
    """
    vocab_size = config.vocab_size
    if named is not None:
        tokenizer, origin = _named(named)
    elif own := next((folder for folder in source.folders if _has_vocabulary(folder)), None):
        tokenizer, origin = read_tokenizer(own), "the source's own"
    elif ORIGINAL_IDS <= vocab_size < ORIGINAL_IDS + 8:
        try:
            tokenizer, origin = _named(ORIGINAL)
        except ValueError as error:
            logger.warning(NONE, error)
            return None, None
    else:
        logger.warning(NONE, f"the source has none, and {ORIGINAL} is not of a model with vocab_size={vocab_size}")
        return None, None
    _check_use(tokenizer, origin, config.pad_token_id)
    check_tokenizer(tokenizer, vocab_size)
    return tokenizer, origin


def _has_vocabulary(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARIES)


def _check_use(tokenizer: PreTrainedTokenizerBase, origin: str, pad_token_id: int | None):
    """Raise ValueError if it has no words, fails on a sentence, or pads otherwise: the model sees its padding."""
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise ValueError(f"tokenizer ({origin}) has no words beside special tokens; name another one (--tokenizer)")
    try:
        tokens = len(tokenizer(SENTENCE)["input_ids"])
    except Exception as error:  # of foreign settings, which can fail in any way
        raise ValueError(f"tokenizer ({origin}) fails on a sentence ({type(error).__name__}: {error})") from error
    if not tokens:
        raise ValueError(f"tokenizer ({origin}) gives no tokens for {SENTENCE!r}; name another one (--tokenizer)")
    if tokenizer.pad_token_id is None or pad_token_id not in (None, tokenizer.pad_token_id):
        raise ValueError(
            f"tokenizer ({origin}) pads with id {tokenizer.pad_token_id} but the model has "
            f"pad_token_id={pad_token_id}; name the one it was trained with (--tokenizer), or correct pad_token_id in "
            "the configuration (--config)"
        )


def _named(name: str) -> tuple[PreTrainedTokenizerBase, str]:
    path = Path(name)
    if path.exists():
        return read_tokenizer(path), path.resolve().name
    if not is_hub_id(name):
        raise ValueError(f"tokenizer {name} is no folder, no vocab.txt and no Hub id (--tokenizer)")
    commit, names, _ = list_files(name)
    wanted = [file for file in TOKENIZER_FILES if file in names]
    if not set(VOCABULARIES) & set(wanted):
        raise ValueError(f"tokenizer {name}: the Hub repository has none of {', '.join(VOCABULARIES)} (--tokenizer)")
    return read_tokenizer(fetch(name, commit, wanted)), f"{name}@{commit}"


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Of a folder or a vocab.txt. Only the tokenizer's files are looked at: a config.json beside them may name code.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    files = [path] if path.is_file() else [path / name for name in TOKENIZER_FILES if (path / name).is_file()]
    if not (path.is_file() or _has_vocabulary(path)):
        raise ValueError(f"tokenizer {path} has none of {', '.join(VOCABULARIES)} (--tokenizer)")
    with tempfile.TemporaryDirectory() as scratch:
        for file in files:
            shutil.copyfile(file, Path(scratch) / ("vocab.txt" if path.is_file() else file.name))
        described = (Path(scratch) / "tokenizer_config.json").is_file()
        tokenizer_class = AutoTokenizer if described else BertTokenizerFast
        try:
            check_model_files(Path(scratch))
            return tokenizer_class.from_pretrained(scratch, trust_remote_code=False)
        except Exception as error:  # a foreign file can fail in any way
            message = str(error).replace(scratch, str(path))
            raise ValueError(f"tokenizer {path} cannot be read ({type(error).__name__}: {message})") from error
