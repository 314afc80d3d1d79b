"""Check where a model folder may be written, and write it whole or not at all. Needs no torch, so it costs no time."""

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from m2bert.files import check_unclaimed, check_writable, claimed, empty, read_json, sync

OLD, NEW = "old", "new"  # in the scratch folder: what was at the output, and what will be
OURS = re.compile(  # what a folder that may be replaced holds: models, adapters, their tokenizers, records and cards
    r"config\.json|adapter_config\.json|(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    r"|(configuration_m2bert|modeling_m2bert|m2bert_\w+|handler)\.py|requirements\.txt|README\.md"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(txt|json)|merges\.txt"
    r"|chat_template\.jinja|modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json"
    r"|\d+_(Pooling|Dense|Normalize)(/config\.json|/model\.safetensors)?"
    r"|training\.json|conversion\.json|int8_ranges\.json|\.eval_results(/m2bert\.yaml)?"
    r"|onnx(/model(_\w+)?\.onnx(_data)?)?"
)
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2


def check_output(output_dir: str | Path, overwrite: bool) -> Path:
    """Return the real path of a folder that may and can be written. Leaves nothing behind. Raises ValueError if it
    cannot be made, must not be replaced (`check_replaceable`), or another process writes it."""
    output = Path(os.path.realpath(output_dir))
    check_writable(output, "output")
    check_replaceable(output, overwrite)
    check_unclaimed(scratch_of(output))
    return output


def check_replaceable(output: Path, overwrite: bool) -> None:
    """Raise ValueError if an output holds the working folder, anything that is of no model folder, or, without
    `overwrite`, a model."""
    hidden = scratch_of(output) / OLD  # where a killed writer may have left the folder that was there
    there = hidden if hidden.is_dir() and not output.exists() else output
    paths = (Path(here, name) for here, folders, names in os.walk(there) for name in sorted(folders + names))
    inner = (path.relative_to(there).as_posix() for path in paths)
    ours = any((there / name).is_file() for name in ("adapter_config.json", "training.json"))
    with suppress(ValueError):
        ours = ours or read_json(there / "config.json").get("model_type") == "m2bert"
    if output in (Path.cwd(), *Path.cwd().parents):
        problem = "holds the working folder, which is not replaced;"
    elif there.exists() and not there.is_dir():
        problem = "exists and is no folder;"
    elif not there.is_dir() or not any(there.iterdir()):
        return
    elif foreign := next((name for name in inner if not OURS.fullmatch(name)), ""):
        problem = f"holds {foreign!r}, which is of no model folder, so it is not replaced;"
    elif not ours:
        problem = "is not empty and holds no model of this package, so it is not replaced;"
    elif overwrite:
        return
    else:
        problem = "is not empty; replace it (--overwrite, overwrite=true), or"
    raise ValueError(f"output {output} {problem} name another folder")


def scratch_of(output: Path) -> Path:
    """Return the folder in which an output is made, and which keeps a second writer out."""
    return output.with_name(f".{output.name}.partial")


def check_apart(output: Path, paths: list[Path]) -> None:
    """Raise ValueError if the folder to be written (of `check_output`) is or holds anything that is read."""
    for path in paths:
        for real in (path.resolve(), path.parent.resolve() / path.name):  # of a link, both ends
            if real == output or output in real.parents:
                raise ValueError(f"output {output} holds {path}, from which it is made; name another folder")


@contextmanager
def whole_folder(output_dir: str | Path, overwrite: bool) -> Iterator[Path]:
    """Give a new folder to fill, which becomes `output_dir` when the block ends, or is gone if the block raises.

    It is made in `.NAME.partial` next to the output, which keeps other writers of that output out. One step moves it to
    its place, also where it replaces another folder; where the system cannot exchange two folders it takes two steps.
    The next writer puts back what a killed writer had moved away, and removes what it left.
    Raises ValueError as `check_output`, or if there is no room for it.
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
                if not (overwrite and output.exists()):
                    new.rename(output)  # fails if the folder is not empty
                elif not _exchange(new, output):
                    output.rename(scratch / OLD)
                    new.rename(output)  # if it fails, `_tidy` puts the old folder back
                sync(output.parent)
            finally:
                _tidy(output, scratch)
                scratch.rmdir()
    except Exception as error:
        words = ("Error while serializing", *map(os.strerror, NO_ROOM))  # all that safetensors and tokenizers say
        if getattr(error, "errno", None) not in NO_ROOM and not any(text in str(error) for text in words):
            raise
        raise ValueError(f"output {output} cannot be written ({error}); free space on its disk") from error
    finally:
        for folder in made:
            with suppress(OSError):  # it holds the output
                folder.rmdir()


def _tidy(output: Path, scratch: Path) -> None:
    """Put back the folder that was at the output, if it is in the scratch folder only; remove the rest of that."""
    for path in scratch.iterdir():
        if path.name not in (NEW, OLD):
            raise ValueError(f"{path} is in the place of unfinished writing and of another origin; move it away")
    if (scratch / OLD).is_dir() and not output.exists():
        (scratch / OLD).rename(output)
    empty(scratch)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step. Return False, with both where they were, if the system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0
