"""Where a model folder may be written: checks that cost no time, and need no torch."""

import os
import re
from pathlib import Path

from m2bert.files import check_unclaimed, read_json

OLD = "old"  # in the scratch folder: what was at the output
OURS = re.compile(  # what a folder that may be replaced holds: models, adapters, their tokenizers, records and cards
    r"config\.json|adapter_config\.json|(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    r"|(configuration_m2bert|modeling_m2bert|m2bert_\w+|handler)\.py|requirements\.txt|README\.md"
    r"|tokenizer(_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(txt|json)|merges\.txt"
    r"|chat_template\.jinja|modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json"
    r"|\d+_(Pooling|Dense|Normalize)(/config\.json|/model\.safetensors)?"
    r"|training\.json|conversion\.json|\.eval_results(/m2bert\.yaml)?"
)


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
    check_replaceable(output, overwrite)
    check_unclaimed(scratch_of(output))
    return output


def _check_writable(output: Path):
    parent = next(folder for folder in output.parents if os.path.lexists(folder))
    names = [*output.relative_to(parent).parts, scratch_of(output).name]
    reason = None
    if not parent.is_dir():
        reason = f"{parent} is no folder"
    elif not os.access(parent, os.W_OK | os.X_OK):
        reason = f"{parent} may not be written"
    elif hasattr(os, "pathconf") and max(len(os.fsencode(name)) for name in names) > os.pathconf(parent, "PC_NAME_MAX"):
        reason = "the name is too long"
    if reason:
        raise ValueError(f"output {output} cannot be written ({reason}); name another folder")


def check_replaceable(output: Path, overwrite: bool):
    """Raise ValueError if something is at an output that must not be replaced, or not without being told to."""
    hidden = scratch_of(output) / OLD  # where a killed writer may have left the folder that was there
    there = hidden if hidden.is_dir() and not output.exists() else output
    if there.exists() and not there.is_dir():
        raise ValueError(f"output {output} exists and is no folder; name a folder")
    if not there.is_dir() or not any(there.iterdir()):
        return
    for here, folders, names in os.walk(there):
        for path in sorted(Path(here, name) for name in folders + names):
            if not OURS.fullmatch(path.relative_to(there).as_posix()):
                found = path.relative_to(there).as_posix()
                raise ValueError(
                    f"output {output} is not empty and holds {found!r}, which is of no model folder, so it is not "
                    "replaced; move that away, or name another folder"
                )
    if not _is_ours(there):
        raise ValueError(
            f"output {output} is not empty and holds no model of this package, so it is not replaced; name another "
            "folder"
        )
    if not overwrite:
        raise ValueError(
            f"output {output} is not empty; name another folder, or overwrite it (--overwrite; in training "
            "overwrite=true)"
        )


def _is_ours(folder: Path) -> bool:
    """Whether it is an adapter, has the record of a training, or its configuration is an M2-BERT's."""
    if any((folder / name).is_file() for name in ("adapter_config.json", "training.json")):
        return True
    try:
        return read_json(folder / "config.json").get("model_type") == "m2bert"
    except ValueError:
        return False


def scratch_of(output: Path) -> Path:
    """Return the folder in which an output is made, and which keeps a second writer out."""
    return output.with_name(f".{output.name}.partial")


def check_apart(output: Path, paths: list[Path]):
    """Raise ValueError if the folder to be written, and perhaps replaced, is or holds anything that is read.

    Args:
        output: of `check_output`.
    """
    for path in paths:
        for real in (path.resolve(), path.parent.resolve() / path.name):  # of a link, both ends
            if real == output or output in real.parents:
                raise ValueError(f"output {output} holds {path}, from which it is made; name another folder")
