"""The one writer of model folders: everything a Hub repository of M2-BERT holds, whole or not at all."""

import copy
import ctypes
import dataclasses
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from m2bert.files import claimed, empty, read_json, sync
from m2bert.schema import checked

from .card import KINDS, Card, public_record, render_card
from .checkpoint import AUTO_CLASSES, check_finite
from .outputs import OLD, check_apart, check_output, check_replaceable, scratch_of  # noqa: F401  (of this room too)
from .sentence_files import SentenceSettings, write_json, write_sentence_files

REQUIREMENTS = "transformers>=5.17,<6\ntorch>=2.11\nsentence-transformers>=6\n"
FOREIGN_CODE = {"auto_map", "custom_pipelines"}  # of whoever made the checkpoint; this folder names its own
HOW_IT_WAS_LOADED = {"is_local", "local_files_only"}  # of a tokenizer, which transformers writes among its settings
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NEW = "new"  # in the scratch folder, beside OLD
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2


def write_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    state_dict: dict | None = None,
    **contents,
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
        state_dict: the whole weights, where the model holds only a shard of them.
        contents: settings, card and extra_files, see `fill_folder`.

    Raises:
        ValueError: the folder may not or cannot be written (`check_output`), the tokenizer has ids outside the
            vocabulary, or a weight is not finite.
    """
    output = check_output(output_dir, overwrite)
    check_tokenizer(tokenizer, model.config.vocab_size)
    model = model if state_dict is None else _unsharded(model, state_dict)
    with whole_folder(output, overwrite) as new:
        fill_folder(new, model, tokenizer, **contents)
    return output


def fill_folder(
    new: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    settings: SentenceSettings | None = None,
    card: Card | None = None,
    extra_files: dict[str, str] | None = None,
):
    """Write what `write_folder` promises into the empty folder of `whole_folder`.

    Args:
        settings: prompts and the like for sentence-transformers.
        card: what the card says beside what the model tells; records among the extra files are added to it.
        extra_files: more text files, by name.

    Raises:
        ValueError: the tokenizer has ids outside the vocabulary, a weight is not finite, or a record is of no form
            that a card can show.
    """
    check_tokenizer(tokenizer, model.config.vocab_size)
    check_finite(model.state_dict(), "the model")
    settings = settings or SentenceSettings()
    model.save_pretrained(new)
    known = {field.name for field in dataclasses.fields(model.config)} | {"model_type"}  # not what a foreign file added
    stored = {name: value for name, value in read_json(new / "config.json").items() if name in known}
    write_json(new / "config.json", stored | {"auto_map": type(model.config)().auto_map})
    _copy_code(model, tokenizer, new)
    if tokenizer is not None:
        save_tokenizer(tokenizer, settings.max_tokens or model.config.max_position_embeddings, new)
    write_sentence_files(model, settings, new)
    readme = render_card(model, _completed(card or Card(), new, settings, extra_files or {}, model.config))
    for name, text in ({"requirements.txt": REQUIREMENTS, "README.md": readme} | (extra_files or {})).items():
        (new / name).parent.mkdir(exist_ok=True)
        (new / name).write_text(text, encoding="utf-8")


def _completed(card: Card, folder: Path, settings: SentenceSettings, extra_files: dict[str, str], config) -> Card:
    """The card, with what the folder itself holds."""
    records = {}
    for field, schema in KINDS.items():
        if (name := f"{field}.json") in extra_files:
            records[field] = public_record(name, extra_files[name])
            checked(schema, records[field], name)
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
    """Give a new folder to fill, which becomes `output_dir` when the block ends, or is gone if the block raises.

    It is made in `.NAME.partial` beside the output, which keeps other writers of that output out. One step moves it to
    its place, also where it replaces another folder; where the system cannot exchange two folders it takes two steps.
    Whoever writes there next puts back what a killed writer had moved away, and removes what it left.

    Raises:
        ValueError: as `check_output`, or there is no room for it.
    """
    output = check_output(output_dir, overwrite)
    scratch, new = scratch_of(output), scratch_of(output) / NEW
    made = [folder for folder in output.parents if not folder.exists()]
    try:
        with claimed(scratch):
            _tidy(output, scratch)
            try:
                check_replaceable(output, overwrite)
                new.mkdir()
                yield new
                for path in new.rglob("*"):
                    if path.name.endswith(".safetensors"):  # safetensors makes them readable for their owner alone
                        path.chmod(new.stat().st_mode & 0o666)
                    sync(path)
                sync(new)
                check_replaceable(output, overwrite)
                _move(new, output, scratch / OLD, overwrite)
                sync(output.parent)
            finally:
                _tidy(output, scratch)
                scratch.rmdir()
    except Exception as error:
        if not _is_of_no_room(error):
            raise
        raise ValueError(
            f"output {output} cannot be written ({error}); free space on its disk, or name another folder"
        ) from error
    finally:
        for folder in made:
            with suppress(OSError):  # it holds the output
                folder.rmdir()


def _tidy(output: Path, scratch: Path):
    """Put back the folder that was at the output, if it is in the scratch folder only; remove the rest of that."""
    for path in scratch.iterdir():
        if path.name not in (NEW, OLD):
            raise ValueError(f"{path} is in the place of unfinished writing and of another origin; move it away")
    if (scratch / OLD).is_dir() and not output.exists():
        (scratch / OLD).rename(output)
    empty(scratch)


def _is_of_no_room(error: Exception) -> bool:
    """Whether a disk takes no more, which safetensors and tokenizers say in words alone."""
    words = ("Error while serializing", *map(os.strerror, NO_ROOM))
    return getattr(error, "errno", None) in NO_ROOM or any(text in str(error) for text in words)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase | None, vocab_size: int):
    """Raise ValueError if the tokenizer cannot pad, or can give an id that the model has no embedding for."""
    if tokenizer is None:
        return
    if tokenizer.pad_token is None:
        raise ValueError("tokenizer has no padding token; name one as pad_token in its tokenizer_config.json")
    largest = max(tokenizer.get_vocab().values())
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
    if _exchange(new, output):
        return
    output.rename(old)
    try:
        new.rename(output)
    except BaseException:
        old.rename(output)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step. Return False, with both where they were, if the system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0


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
