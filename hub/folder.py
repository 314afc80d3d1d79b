"""The one writer of model folders: everything a Hub repository of M2-BERT holds, whole or not at all."""

import copy
import ctypes
import dataclasses
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from m2bert.files import check_unclaimed, claimed, empty, read_json, sync
from m2bert.schema import checked

from .checkpoint import ADAPTER_CONFIG, AUTO_CLASSES, check_finite
from .model_card import Card, render_card
from .private import public_record
from .records import KINDS
from .sentence_files import SentenceSettings, write_json, write_sentence_files

REQUIREMENTS = "transformers>=5.17,<6\ntorch>=2.11\nsentence-transformers>=6\n"
FOREIGN_CODE = {"auto_map", "custom_pipelines"}  # of whoever made the checkpoint; this folder names its own
HOW_IT_WAS_LOADED = {"is_local", "local_files_only"}  # of a tokenizer, which transformers writes among its settings
OURS = re.compile(  # what a folder that may be replaced holds: models, adapters, their tokenizers, records and cards
    r"config\.json|adapter_config\.json|(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    r"|(configuration_m2bert|modeling_m2bert|m2bert_\w+|handler)\.py|requirements\.txt|README\.md"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(txt|json)|merges\.txt"
    r"|chat_template\.jinja|modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json"
    r"|\d+_(Pooling|Dense|Normalize)(/config\.json|/model\.safetensors)?"
    r"|training\.json|conversion\.json|\.eval_results(/m2bert\.yaml)?"
)
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NEW, OLD = "new", "old"  # in the scratch folder
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
    scratch, new = _scratch(output), _scratch(output) / NEW
    made = [folder for folder in output.parents if not folder.exists()]
    try:
        with claimed(scratch):
            _tidy(output, scratch)
            try:
                _check_replaceable(output, overwrite)
                new.mkdir()
                yield new
                for path in new.rglob("*"):
                    if path.name.endswith(".safetensors"):  # safetensors makes them readable for their owner alone
                        path.chmod(new.stat().st_mode & 0o666)
                    sync(path)
                sync(new)
                _check_replaceable(output, overwrite)
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


def check_output(output_dir: str | Path, overwrite: bool) -> Path:
    """Return the real path of a folder that may and can be written. Changes nothing.

    Raises:
        ValueError: it holds the working folder, is no folder, cannot be made, or another process writes it; it is not
            empty and overwrite is False; or it holds anything that no model folder of this package holds.
    """
    output = Path(os.path.realpath(output_dir))
    if output == Path.cwd() or output in Path.cwd().parents:
        raise ValueError(f"output {str(output_dir)!r} holds the working folder; name a folder in it")
    _check_writable(output)
    _check_replaceable(output, overwrite)
    check_unclaimed(_scratch(output))
    return output


def _check_writable(output: Path):
    parent = next(folder for folder in output.parents if os.path.lexists(folder))
    names = [*output.relative_to(parent).parts, _scratch(output).name]
    reason = None
    if not parent.is_dir():
        reason = f"{parent} is no folder"
    elif not os.access(parent, os.W_OK | os.X_OK):
        reason = f"{parent} may not be written"
    elif hasattr(os, "pathconf") and max(len(os.fsencode(name)) for name in names) > os.pathconf(parent, "PC_NAME_MAX"):
        reason = "the name is too long"
    if reason:
        raise ValueError(f"output {output} cannot be written ({reason}); name another folder")


def _check_replaceable(output: Path, overwrite: bool):
    hidden = _scratch(output) / OLD  # where a killed writer may have left the folder that was there
    there = hidden if hidden.is_dir() and not output.exists() else output
    if there.exists() and not there.is_dir():
        raise ValueError(f"output {output} exists and is no folder; name a folder")
    if not there.is_dir() or not any(there.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"output {output} is not empty; name another folder, or overwrite it (--overwrite; in training "
            "overwrite=true)"
        )
    for here, folders, names in os.walk(there):
        for path in sorted(Path(here, name) for name in folders + names):
            if not OURS.fullmatch(path.relative_to(there).as_posix()):
                raise ValueError(
                    f"output {output} holds {path.relative_to(there).as_posix()!r}, which is of no model folder, so it "
                    "is not replaced; move that away, or name another folder"
                )
    if not _is_ours(there):
        raise ValueError(
            f"output {output} is not empty and holds no model of this package, so it is not replaced; name another "
            "folder"
        )


def _is_ours(folder: Path) -> bool:
    """Whether it is an adapter, has the record of a training, or its configuration is an M2-BERT's."""
    if any((folder / name).is_file() for name in (ADAPTER_CONFIG, "training.json")):
        return True
    try:
        return read_json(folder / "config.json").get("model_type") == "m2bert"
    except ValueError:
        return False


def _scratch(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


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
