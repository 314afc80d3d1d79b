"""The one writer of model folders: everything a Hub repository of M2-BERT holds, whole or not at all."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .model_card import render_card
from .sentence_files import SentenceSettings, write_sentence_files

REQUIREMENTS = "transformers>=5.17,<6\ntorch>=2.11\nsentence-transformers>=6\n"


def write_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    settings: SentenceSettings | None = None,
    card_text: str = "",
    extra_files: dict[str, str] | None = None,
) -> Path:
    """Write a complete, self-contained Hub folder: safetensors, configuration, code, tokenizer, sentence-transformers
    files, requirements.txt and a README.md card.

    The folder loads with `AutoModel.from_pretrained(dir, trust_remote_code=True)` and
    `SentenceTransformer(dir, trust_remote_code=True)` where this package is not installed. It is assembled beside
    its destination and moved there in one step (two where it replaces another, which comes back if the second fails).

    Args:
        model: any M2-BERT class.
        tokenizer: saved with the model's maximum length and right padding; None leaves it out.
        output_dir: the folder to make; links are followed.
        overwrite: replace a model folder that exists.
        settings: prompts and the like for sentence-transformers.
        card_text: Markdown about this very model, for the card.
        extra_files: more text files, by name.

    Raises:
        ValueError: output_dir is no folder, or is not empty and overwrite is False, or the tokenizer has ids outside
            the vocabulary.
    """
    output = check_output(output_dir, overwrite)
    check_tokenizer(tokenizer, model.config.vocab_size)
    settings = settings or SentenceSettings()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        new = Path(scratch) / "new"
        model.save_pretrained(new)
        _copy_code(model, new)
        if tokenizer is not None:
            _save_tokenizer(tokenizer, settings.max_tokens or model.config.max_position_embeddings, new)
        write_sentence_files(model, settings, new)
        texts = {"requirements.txt": REQUIREMENTS, "README.md": render_card(model, card_text)} | (extra_files or {})
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8")
        _move(new, output, Path(scratch) / "old", overwrite)
    return output


def check_output(output_dir: str | Path, overwrite: bool) -> Path:
    """The real path of a folder that may be written; raise ValueError if it may not."""
    output = Path(os.path.realpath(output_dir))
    if output == Path.cwd() or output in Path.cwd().parents:
        raise ValueError(f"output {str(output_dir)!r} holds the working folder; name a folder in it")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} exists and is no folder; name a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return output
    if not overwrite:
        raise ValueError(f"output {output} is not empty; name another folder, or overwrite it (--overwrite)")
    if not (output / "config.json").is_file():
        raise ValueError(f"output {output} is not empty and holds no model, so it is not replaced; name another folder")
    return output


def check_tokenizer(tokenizer: PreTrainedTokenizerBase | None, vocab_size: int):
    """Raise ValueError if the tokenizer can give an id that the model has no embedding for."""
    largest = max(tokenizer.get_vocab().values()) if tokenizer is not None else 0
    if largest >= vocab_size:
        raise ValueError(
            f"tokenizer gives ids up to {largest} but the model has vocab_size={vocab_size}; "
            "use the tokenizer it was trained with, or resize_token_embeddings"
        )


def _move(new: Path, output: Path, old: Path, overwrite: bool):
    """Put `new` in the place of `output`. A folder that is not empty stands in the way unless `overwrite`."""
    if not (overwrite and output.exists()):
        new.rename(output)
        return
    output.rename(old)
    try:
        new.rename(output)
    except BaseException:
        old.rename(output)
        raise


def _copy_code(model: PreTrainedModel, folder: Path):
    """Every module that stands beside the model's own, byte for byte."""
    source = Path(sys.modules[type(model).__module__].__file__).parent
    for path in sorted(source.glob("*.py")):
        if path.name != "__init__.py":
            shutil.copyfile(path, folder / path.name)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, max_tokens: int, folder: Path):
    previous = tokenizer.model_max_length, tokenizer.padding_side
    tokenizer.model_max_length, tokenizer.padding_side = max_tokens, "right"
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length, tokenizer.padding_side = previous
