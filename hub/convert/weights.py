"""Weights out of foreign files: safetensors, pickles, and the index of several of them. No code of theirs is run."""

import logging
import pickle
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from m2bert.files import read_json
from m2bert.model_files import WeightsIndex
from m2bert.schema import checked

from .inert_pickle import read_inert

logger = logging.getLogger(__name__)

INDEX = ".index.json"
USUAL = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
SUFFIXES = (".safetensors", ".bin", ".pt")


def choose_weights(names: list[str], wanted: str | None, place: str) -> str:
    """The weights (a file, or an index) among the files of a folder or repository.

    Args:
        names: of the files. wanted: the one that was asked for. place: named in errors.

    Raises:
        ValueError: the wanted file is not there; or there are none, or several of which none has a usual name.
    """
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{place} has no file {wanted!r} (--file); it has {_listed(names)}")
        return wanted
    if usual := next((name for name in USUAL if name in names), None):
        return usual
    found = sorted(name for name in names if name.endswith(SUFFIXES) and "/" not in name)
    if not found:
        raise ValueError(f"{place} has no weights (*{', *'.join(SUFFIXES)}); it has {_listed(names)}")
    if len(found) > 1:
        raise ValueError(f"{place} has several weights: {_listed(found)}; choose one with --file NAME")
    return found[0]


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)[:20]) + (", ..." if len(names) > 20 else "") or "no file at all"


def shards(weights: Path) -> list[str]:
    """Names of the files that hold the tensors, beside `weights`: itself, or those that an index names.

    Raises:
        ValueError: it is no index, or names a file elsewhere.
    """
    if not weights.name.endswith(INDEX):
        return [weights.name]
    names = sorted(set(_weight_map(weights).values()))
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not name.endswith(SUFFIXES):
            raise ValueError(f"{weights} names {name!r}, which is no weights file of its folder; copy the index again")
    return names


def _weight_map(index: Path) -> dict[str, str]:
    names = checked(WeightsIndex, read_json(index), str(index)).weight_map
    if not names:
        raise ValueError(f"{index} has an empty weight_map; name the index of a sharded checkpoint")
    return names


def read_weights(weights: Path) -> dict[str, Tensor]:
    """Tensors by name, of a file (see `read_file`) or of all files of an index.

    Raises:
        ValueError: see `shards` and `read_file`; a shard is missing, or shards and index disagree.
    """
    tensors: dict[str, Tensor] = {}
    for name in shards(weights):
        path = weights.parent / name
        if not path.is_file():
            raise ValueError(f"{weights} names {name!r}, which is not beside it; copy or download it again")
        found = read_file(path)
        if twice := sorted(found.keys() & tensors.keys()):
            raise ValueError(f"{weights}: several files hold {', '.join(twice[:5])}; copy or download them again")
        tensors |= found
    if weights.name.endswith(INDEX) and (odd := sorted(_weight_map(weights).keys() ^ tensors.keys())):
        raise ValueError(f"{weights} and its files disagree about {', '.join(odd[:5])}; copy or download them again")
    return tensors


def read_file(path: Path) -> dict[str, Tensor]:
    """State dict of one file; composer's `state.model` is unwrapped. No code that the file names is run.

    Raises:
        ValueError: it is damaged, holds no tensors, or holds anything else among them.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # foreign objects beside the weights, or worse
            content = read_inert(path)
            logger.info("%s holds more than tensors; what else it names was neither loaded nor run", path)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, not tensors by name")
        tensors = dict(content["state"]["model"]) if isinstance(content.get("state"), dict) else content
    except Exception as error:  # a foreign file can fail in any way; none of them is ours
        if _is_safetensors(path):
            raise ValueError(f"{path} holds safetensors; name it {path.stem}.safetensors") from error
        raise ValueError(
            f"{path} cannot be read as a state dict ({type(error).__name__}: {error}); copy or download it again"
        ) from error
    if not any(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} cannot be read as a state dict: it holds no tensors by name")
    for name, value in tensors.items():
        if problem := _no_weight(name, value):
            raise ValueError(f"{path}: {name!r} {problem}; save the tensors of the model alone, whole and dense")
    return tensors


def _no_weight(name, value) -> str | None:
    """Why an entry of a state dict is no tensor by name with numbers of its own; None if it is one."""
    if not isinstance(name, str):
        return "is no name of a tensor"
    if not isinstance(value, Tensor):
        return f"is no tensor that can be read ({type(value).__name__})"
    if value.layout != torch.strided or value.device.type != "cpu":
        return f"is no dense tensor ({value.layout} on {value.device.type})"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"has fewer numbers than its shape {tuple(value.shape)}"
    return None


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a header and the header."""
    with path.open("rb") as file:
        length, header = int.from_bytes(file.read(8), "little"), file.read(1)
    return header == b"{" and length < path.stat().st_size
