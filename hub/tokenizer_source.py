"""The tokenizer of a converted model: the one that was named, the source's own, or the one it was trained with."""

import logging
import shutil
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from .folder import check_tokenizer
from .source import TOKENIZER_FILES, Source, fetch, is_hub_id, list_files

logger = logging.getLogger(__name__)

ORIGINAL = "google-bert/bert-base-uncased"
ORIGINAL_IDS = 30522  # the research code rounds its vocabulary up to a multiple of 8
NONE = "the folder is written without a tokenizer, and so embeds no text: %s; name one with --tokenizer"


def find_tokenizer(
    named: str | None, source: Source, vocab_size: int
) -> tuple[PreTrainedTokenizerBase | None, str | None]:
    """
    Args:
        named: a folder, a vocab.txt or a Hub id; None: the source's own, else the original's from the Hub.

    Returns:
        The tokenizer and where it is from, for the record; (None, None) with a warning where there is none.

    Raises:
        ValueError: the named one is not there; or it gives ids that the model has no embedding for.
    """
    if named is not None:
        tokenizer, origin = _named(named)
    elif any((source.folder / name).is_file() for name in TOKENIZER_FILES[:3]):
        tokenizer, origin = read_tokenizer(source.folder), "the source's own"
    elif ORIGINAL_IDS <= vocab_size < ORIGINAL_IDS + 8:
        try:
            tokenizer, origin = _named(ORIGINAL)
        except ValueError as error:
            logger.warning(NONE, error)
            return None, None
    else:
        logger.warning(NONE, f"the source has none, and {ORIGINAL} is not of a model with vocab_size={vocab_size}")
        return None, None
    check_tokenizer(tokenizer, vocab_size)
    return tokenizer, origin


def _named(name: str) -> tuple[PreTrainedTokenizerBase, str]:
    path = Path(name)
    if path.exists():
        return read_tokenizer(path), path.resolve().name
    if not is_hub_id(name):
        raise ValueError(f"tokenizer {name} is no folder, no vocab.txt and no Hub id (--tokenizer)")
    commit, names = list_files(name)
    wanted = [file for file in TOKENIZER_FILES if file in names]
    if not wanted:
        raise ValueError(f"tokenizer {name}: the Hub repository has none of {', '.join(TOKENIZER_FILES)} (--tokenizer)")
    return read_tokenizer(fetch(name, commit, wanted)), f"{name}@{commit}"


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Of a folder or a vocab.txt. Only the tokenizer's files are looked at: a config.json beside them may name code.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    files = [path] if path.is_file() else [path / name for name in TOKENIZER_FILES if (path / name).is_file()]
    if not files:
        raise ValueError(f"tokenizer {path} has none of {', '.join(TOKENIZER_FILES)} (--tokenizer)")
    with tempfile.TemporaryDirectory() as scratch:
        for file in files:
            shutil.copyfile(file, Path(scratch) / ("vocab.txt" if path.is_file() else file.name))
        described = (Path(scratch) / "tokenizer_config.json").is_file()
        tokenizer_class = AutoTokenizer if described else BertTokenizerFast
        try:
            return tokenizer_class.from_pretrained(scratch, trust_remote_code=False)
        except Exception as error:  # a foreign file can fail in any way
            message = str(error).replace(scratch, str(path))
            raise ValueError(f"tokenizer {path} cannot be read ({type(error).__name__}: {message})") from error
