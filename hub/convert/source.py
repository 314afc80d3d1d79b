"""Find and read a model of the research code: a file, a folder, or one commit of a Hub repository, and its tokenizer.

Of a repository only what a conversion reads is downloaded, and never code. Nothing that is read is run.
"""

import glob
import logging
import pickle
import re
import shutil
import tempfile
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from pydantic import Field
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedConfig, PreTrainedTokenizerBase

from m2bert.files import read_json
from m2bert.model_files import WeightsIndex, check_model_files
from m2bert.schema import checked
from m2bert.terminal import one_line

from ..card import read_metadata
from ..checkpoint import inside
from ..client import HubError, explain, plain_errors
from ..folder import check_tokenizer
from .inert_pickle import read_inert

logger = logging.getLogger(__name__)

INDEX = ".index.json"
USUAL = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
SUFFIXES = (".safetensors", ".bin", ".pt")
VOCABULARIES = ("tokenizer.json", "vocab.txt")
TOKENIZER_FILES = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json")
BESIDE = (*TOKENIZER_FILES, "config.json", "README.md")
ORIGINAL_TOKENIZER = "google-bert/bert-base-uncased"
ORIGINAL_IDS = 30522  # the research code rounds its vocabulary up to a multiple of 8
SENTENCE = "The committee met on Tuesday to discuss the budget."


class ShardIndex(WeightsIndex):
    """An index of files that may hold weights."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"\.(safetensors|bin|pt)$")]] = Field(min_length=1)


@dataclass
class Source:
    """A model to convert."""

    name: str  # org/name, or the name of a file or folder
    revision: str | None  # commit of the repository
    weights: Path  # a file, or the index of several
    root: Path  # the folder that was named, or that holds the named file
    cached: bool = False  # the Hub was not reached: only what the cache holds is known

    @property
    def folders(self) -> list[Path]:
        """Where files that belong to the weights may lie, the nearest first."""
        return list(dict.fromkeys([self.weights.parent, self.root]))

    def beside(self, name: str) -> Path | None:
        """Return a file that belongs to the weights, or None."""
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)

    def license(self) -> str | None:
        """Return the license id in the metadata of the card, or None."""
        try:
            stated = read_metadata(self.beside("README.md")).license
        except ValueError:
            return None
        return stated if isinstance(stated, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}", stated) else None


def find_source(source: str, revision: str | None = None, file: str | None = None) -> Source:
    """Find the weights of a model, and download them if they are on the Hub.

    Args:
        source: a file, a folder, or the id of a Hub repository; what exists here comes first.
        revision: branch, tag or commit of the repository (main).
        file: name of the weights (with their folder's, if they lie in one), where there are several.
    """
    path = Path(source)
    if source and path.exists():
        if revision is not None or (file is not None and path.is_file()):
            raise ValueError(f"--revision and --file choose in a repository or folder; leave them out for {source}")
        if path.is_file():
            return Source(path.name, None, path, path.parent)
        names = [entry.name for entry in path.iterdir() if entry.is_file()]
        names += [file] if file is not None and inside(path, file).is_file() else []
        return Source(path.resolve().name, None, path / choose_weights(names, file, source), path)
    names, cached = list_files(source, revision)
    chosen = choose_weights(names, file, source)
    folder = chosen.rpartition("/")[0]
    beside = {f"{place}{name}" for name in BESIDE for place in (f"{folder}/" if folder else "", "")}
    root = cached or fetch(source, revision, [chosen, *sorted(beside.intersection(names))])
    if not cached and chosen.endswith(INDEX):
        parts = {Path(folder, name).as_posix() for name in shards(root / chosen)}
        fetch(source, root.name, sorted(parts.intersection(names)))
    return Source(source, root.name, root / chosen, root, cached is not None)


def list_files(repo_id: str, revision: str | None) -> tuple[list[str], Path | None]:
    """Return the files of a repository; if the Hub is not reached, those in the cache, and their folder there."""
    with plain_errors(repo_id):
        try:
            return HfApi().list_repo_files(repo_id, revision=revision), None
        except (HTTPError, OfflineModeIsEnabled) as error:
            cached = None
            if not isinstance(error, HfHubHTTPError):  # if the Hub answers, what the cache has may be old, or not all
                with suppress(LocalEntryNotFoundError):
                    # without patterns it would ask for all files of the repository, of which only some were downloaded
                    cached = snapshot_download(repo_id, revision=revision, allow_patterns=[], local_files_only=True)
            if cached is None:
                raise HubError(one_line(f"{repo_id} is no file or folder here; {explain(error, repo_id)}")) from None
    files = [path.relative_to(cached).as_posix() for path in Path(cached).rglob("*") if path.is_file()]
    return files, Path(cached)


def fetch(repo_id: str, revision: str | None, names: list[str]) -> Path:
    """Download files of one commit. Return its folder, which has the commit's name."""
    with plain_errors(repo_id):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(map(glob.escape, names))))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise HubError(f"{repo_id}: the Hub does not give {', '.join(missing)}; run it again later")
    return folder


def choose_weights(names: list[str], wanted: str | None, place: str) -> str:
    """Choose the weights (a file, or an index) among the files of a folder or repository, which errors name."""
    usual = [name for name in USUAL if name in names][:1]
    found = usual or [name for name in names if name.endswith(SUFFIXES) and "/" not in name]
    chosen = found if wanted is None else [name for name in names if name == wanted]
    if len(chosen) != 1:
        listed = ", ".join(sorted(chosen or names)[:20]) or "no file at all"
        what = f"no file {wanted!r}" if wanted is not None else "several weights" if chosen else "no weights"
        raise ValueError(f"{place} has {what} among {listed}; choose one of {', '.join(SUFFIXES)} with --file NAME")
    return chosen[0]


def shards(weights: Path) -> dict[str, list[str] | None]:
    """Return the files that hold the tensors, beside `weights`, each with the tensors that an index takes from it."""
    if not weights.name.endswith(INDEX):
        return {weights.name: None}
    files = {}
    for tensor, name in checked(ShardIndex, read_json(weights), str(weights)).weight_map.items():
        inside(weights.parent, name)
        files.setdefault(name, []).append(tensor)
    return files


def read_weights(weights: Path) -> dict[str, Any]:
    """Read the state dict of a file, or of the files of an index; composer's `state.model` is unwrapped.

    No code that a file names is run. `names.check_tensors` says whether all that was read are tensors.
    """
    entries = {}
    for name, wanted in shards(weights).items():
        path = weights.parent / name
        try:
            if path.suffix == ".safetensors":
                content = load_file(path)
            else:
                content = read_pickle(path)
                content = content["state"]["model"] if isinstance(content.get("state"), dict) else content
            entries |= content if wanted is None else {tensor: content[tensor] for tensor in wanted}
        except Exception as error:  # a foreign file can fail in any way
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path} cannot be read as a state dict ({why}); copy or download it again") from error
    return entries


def read_pickle(path: Path) -> Any:
    """Read a file of torch.save, on the CPU; if torch refuses it, what of it are tensors and plain containers."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # foreign objects beside the weights, or worse
        content = read_inert(path)
        logger.info("%s holds more than tensors; what else it names was neither loaded nor run", path)
        return content


def find_tokenizer(
    named: str | None, source: Source, config: PreTrainedConfig
) -> tuple[PreTrainedTokenizerBase | None, str | None]:
    """Find the tokenizer of a converted model: the named one, else the source's own, else the original's from the Hub.

    Args:
        named: a folder, a vocab.txt or a Hub id.

    Returns:
        The tokenizer and where it is from, for the record; (None, None) with a warning where there is none.
    """
    own = next((folder for folder in source.folders if any((folder / name).is_file() for name in VOCABULARIES)), None)
    place = None
    if named is None and own:
        place, origin = own, "the source's own"
    elif named is not None and Path(named).exists():
        place, origin = Path(named), Path(named).resolve().name
    elif named is not None or ORIGINAL_IDS <= config.vocab_size < ORIGINAL_IDS + 8:
        repo_id = named or ORIGINAL_TOKENIZER
        with nullcontext() if named is not None else suppress(HubError):
            names, cached = list_files(repo_id, None)
            place = cached or fetch(repo_id, None, [name for name in TOKENIZER_FILES if name in names])
            origin = f"{repo_id}@{place.name}"
    if place is None:
        logger.warning(
            "the folder is written without a tokenizer: the source has none, and %s is not to be had or of models with "
            "another vocab_size; name one with --tokenizer", ORIGINAL_TOKENIZER,
        )  # fmt: skip
        return None, None
    return read_tokenizer(place, config), origin


def read_tokenizer(place: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a folder or a vocab.txt; raise ValueError if it does not work, or not with the model.

    Other files are not looked at: a config.json may name code.
    """
    files = {"vocab.txt": place} if place.is_file() else {name: place / name for name in TOKENIZER_FILES}
    files = {name: file for name, file in files.items() if file.is_file()}
    problem = None
    with tempfile.TemporaryDirectory() as scratch:
        for name, file in files.items():
            shutil.copyfile(file, Path(scratch) / name)
        try:
            check_model_files(Path(scratch))
            tokenizer_class = AutoTokenizer if "tokenizer_config.json" in files else BertTokenizerFast
            tokenizer = tokenizer_class.from_pretrained(scratch, trust_remote_code=False)
            check_tokenizer(tokenizer, config.vocab_size)
            words = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
            if not words or not tokenizer(SENTENCE)["input_ids"]:
                problem = f"has no words, or no tokens for {SENTENCE!r}"
            elif config.pad_token_id not in (None, tokenizer.pad_token_id):
                problem = f"pads with id {tokenizer.pad_token_id}, the model with {config.pad_token_id} (see --config)"
        except Exception as error:  # a foreign file can fail in any way
            problem = f"cannot be used ({type(error).__name__}: {error})".replace(scratch, str(place))
    if problem:
        raise ValueError(f"tokenizer {place} {problem}; name the one that the model was trained with (--tokenizer)")
    return tokenizer
