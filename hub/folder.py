"""The one writer of model folders: everything a Hub repository of M2-BERT holds, whole or not at all."""

import copy
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .checkpoint import AUTO_CLASSES, read_json
from .model_card import Card, render_card
from .private import public_record
from .sentence_files import SentenceSettings, write_json, write_sentence_files

REQUIREMENTS = "transformers>=5.17,<6\ntorch>=2.11\nsentence-transformers>=6\n"
FOREIGN_CODE = {"auto_map", "custom_pipelines"}  # of whoever made the checkpoint; this folder names its own
HOW_IT_WAS_LOADED = {"is_local", "local_files_only"}  # of a tokenizer, which transformers writes among its settings


def write_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    settings: SentenceSettings | None = None,
    card: Card | None = None,
    extra_files: dict[str, str] | None = None,
    state_dict: dict | None = None,
) -> Path:
    """Write a complete, self-contained Hub folder: safetensors, configuration, code, tokenizer, sentence-transformers
    files, requirements.txt and a README.md card; of an embedding model with a tokenizer, the handler.py of Inference
    Endpoints.

    The folder loads with `AutoModel.from_pretrained(dir, trust_remote_code=True)` and
    `SentenceTransformer(dir, trust_remote_code=True)` where this package is not installed. It comes whole or not at all
    (`whole_folder`).

    Args:
        model: any M2-BERT class.
        tokenizer: saved with the model's maximum length and right padding; None leaves it out.
        output_dir: the folder to make; links are followed.
        overwrite: replace a model folder that exists.
        settings: prompts and the like for sentence-transformers.
        card: what the card says beside what the model tells; records among the extra files are added to it.
        extra_files: more text files, by name.
        state_dict: the whole weights, where the model holds only a shard of them.

    Raises:
        ValueError: output_dir is no folder, or is not empty and overwrite is False, or the tokenizer has ids outside
            the vocabulary.
    """
    output = check_output(output_dir, overwrite)
    check_tokenizer(tokenizer, model.config.vocab_size)
    settings = settings or SentenceSettings()
    model = model if state_dict is None else _unsharded(model, state_dict)
    with whole_folder(output, overwrite) as new:
        model.save_pretrained(new)
        stored = {name: value for name, value in read_json(new / "config.json").items() if name not in FOREIGN_CODE}
        write_json(new / "config.json", stored | {"auto_map": type(model.config)().auto_map})
        _copy_code(model, tokenizer, new)
        if tokenizer is not None:
            save_tokenizer(tokenizer, settings.max_tokens or model.config.max_position_embeddings, new)
        write_sentence_files(model, settings, new)
        readme = render_card(model, _completed(card or Card(), new, settings, extra_files or {}, model.config))
        for name, text in ({"requirements.txt": REQUIREMENTS, "README.md": readme} | (extra_files or {})).items():
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text(text, encoding="utf-8")
    return output


def _completed(card: Card, folder: Path, settings: SentenceSettings, extra_files: dict[str, str], config) -> Card:
    """The card, with what the folder itself holds."""
    texts = {field: (f"{field}.json", extra_files.get(f"{field}.json", "{}")) for field in ("training", "conversion")}
    records = {field: public_record(*name_and_text) for field, name_and_text in texts.items()}
    return dataclasses.replace(
        card,
        **records,
        document_prompt=settings.prompts.get("document") or "",
        max_tokens=settings.max_tokens or config.max_position_embeddings,
        has_tokenizer=(folder / "tokenizer_config.json").is_file(),
        has_handler=(folder / "handler.py").is_file(),
    )


@contextmanager
def whole_folder(output_dir: str | Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `output_dir`, to be filled. It is moved there in one step (two where it replaces another,
    which comes back if the second fails), or is gone if filling it raises. Raises ValueError as check_output does."""
    output = check_output(output_dir, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        yield new
        for path in new.rglob("*.safetensors"):  # safetensors makes them readable for their owner alone
            path.chmod(new.stat().st_mode & 0o666)
        _move(new, output, Path(scratch) / "old", overwrite)


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
        raise ValueError(
            f"output {output} is not empty; name another folder, or overwrite it (--overwrite; in training "
            "overwrite=true)"
        )
    if not any((output / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"output {output} is not empty and holds no model, so it is not replaced; name another folder")
    return output


def check_apart(output: Path, paths: list[Path]):
    """Raise ValueError if the folder to be written, and perhaps replaced, is or holds anything that is read.

    Args:
        output: of `check_output`.
    """
    for path in paths:
        for real in (path.resolve(), path.parent.resolve() / path.name):  # of a link, both ends
            if real == output or output in real.parents:
                raise ValueError(f"output {output} holds {path}, from which it is made; name another folder")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase | None, vocab_size: int):
    """Raise ValueError if the tokenizer can give an id that the model has no embedding for."""
    largest = max(tokenizer.get_vocab().values()) if tokenizer is not None else 0
    if largest >= vocab_size:
        raise ValueError(
            f"tokenizer gives ids up to {largest} but the model has vocab_size={vocab_size}; "
            "use the tokenizer it was trained with, or resize_token_embeddings"
        )


def _unsharded(model: PreTrainedModel, state_dict: dict) -> PreTrainedModel:
    """A plain model of these weights: sharding (FSDP2) changes the class of a model, not only its tensors."""
    name = type(model).__name__.removeprefix("FSDP")
    with torch.device("meta"):
        plain = AUTO_CLASSES[name].from_config(copy.deepcopy(model.config))
    plain.load_state_dict(state_dict, assign=True)
    plain.tie_weights()
    return plain


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


def _copy_code(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path):
    """Every module that stands beside the model's own, byte for byte; and, where text can be embedded, handler.py."""
    source = Path(sys.modules[type(model).__module__].__file__).parent
    for path in sorted(source.glob("*.py")):
        if path.name != "__init__.py":
            shutil.copyfile(path, folder / path.name)
    if type(model).__name__ == "M2BertModel" and tokenizer is not None:
        shutil.copyfile(Path(__file__).with_name("handler.py"), folder / "handler.py")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, max_tokens: int, folder: Path):
    """Write a tokenizer that cuts texts at `max_tokens` and pads on the right."""
    previous = tokenizer.model_max_length, tokenizer.padding_side
    tokenizer.model_max_length, tokenizer.padding_side = max_tokens, "right"
    try:
        tokenizer.save_pretrained(folder)
        settings = read_json(folder / "tokenizer_config.json")
        settings = {name: value for name, value in settings.items() if name not in HOW_IT_WAS_LOADED | FOREIGN_CODE}
        write_json(folder / "tokenizer_config.json", settings)
    finally:
        tokenizer.model_max_length, tokenizer.padding_side = previous
