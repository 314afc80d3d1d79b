"""Find and read a model of the research code: a file, a folder, or one commit of a Hub repository, and its tokenizer.

Of a repository only what a conversion reads is downloaded, and never code. Nothing that is read is run.
"""

import glob
import logging
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedConfig, PreTrainedTokenizerBase

from m2bert.files import read_json
from m2bert.model_files import WeightsIndex, check_model_files
from m2bert.schema import checked

from ..card import read_metadata
from ..checkpoint import inside
from ..client import HubError, plain_errors
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
        if file is not None and not Path(file).is_absolute() and ".." not in Path(file).parts:
            names += [file] if (path / file).is_file() else []
        return Source(path.resolve().name, None, path / choose_weights(names, file, source), path)

    def choose(names: list[str]) -> list[str]:
        chosen = choose_weights(names, file, source)
        folder = chosen.rpartition("/")[0]
        return [chosen, *(f"{place}{name}" for name in BESIDE for place in {f"{folder}/" if folder else "", ""})]

    root, names, cached = download(source, revision, choose)
    weights = root / choose_weights(names, file, source)
    if weights.name.endswith(INDEX):
        folder = weights.parent.relative_to(root)
        download(source, root.name, lambda _: [(folder / name).as_posix() for name in shards(weights)])
    return Source(source, root.name, weights, root, cached)


def download(
    repo_id: str, revision: str | None, choose: Callable[[list[str]], list[str]]
) -> tuple[Path, list[str], bool]:
    """Download files of one commit, or find them in the cache. Raises HubError.

    Args:
        choose: names the files to download, given all that the repository has; those that it does not have are ignored.

    Returns:
        The folder of the commit, named after it; the repository's files; True if the Hub was not reached, and the
        files are those that the cache has.
    """
    nothing = f"{repo_id} is no file or folder here and no Hub repository that you may read"
    with plain_errors(repo_id):
        try:
            names = HfApi().list_repo_files(repo_id, revision=revision)
        except RepositoryNotFoundError as error:
            raise HubError(f"{nothing}; if it is private or gated, ask for access and run `hf auth login`") from error
        except (HTTPError, OfflineModeIsEnabled) as error:
            if isinstance(error, HfHubHTTPError):  # the Hub answers: what the cache has may be old, or not all
                raise
            try:
                # without patterns it would ask for all files of the repository, of which only some were downloaded
                folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=[], local_files_only=True))
            except LocalEntryNotFoundError:
                raise HubError(f"{nothing}: the Hub cannot be reached and the cache has no copy") from error
            return folder, [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()], True
    wanted = [name for name in choose(names) if name in names]
    with plain_errors(repo_id):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(map(glob.escape, wanted))))
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        raise HubError(f"{repo_id}: the Hub does not give {', '.join(missing)}; run it again later")
    return folder, names, False


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
    """Return the files that hold the tensors, beside `weights`, each with the tensors that an index says it holds."""
    if not weights.name.endswith(INDEX):
        return {weights.name: None}
    files = {}
    for tensor, name in checked(WeightsIndex, read_json(weights), str(weights)).weight_map.items():
        inside(weights.parent, name)
        files.setdefault(name, []).append(tensor)
    if not files or not all(name.endswith(SUFFIXES) for name in files):
        raise ValueError(f"{weights} names other files than weights, or none, in its weight_map; copy it again")
    return files


def read_weights(weights: Path) -> dict[str, Tensor]:
    """Read tensors by name, of a file or of all files of an index."""
    tensors = {}
    for name, expected in shards(weights).items():
        found = read_file(weights.parent / name)
        if expected is not None and (odd := sorted(found.keys() ^ set(expected))):
            raise ValueError(f"{weights} and {name} disagree about {', '.join(odd[:5])}; download them again")
        tensors |= found
    return tensors


def read_file(path: Path) -> dict[str, Tensor]:
    """Read the state dict of one file; composer's `state.model` is unwrapped. No code that the file names is run.

    Raises:
        ValueError: it is damaged, or holds anything but tensors by name: dense, on the CPU, not expanded from fewer
            numbers than their shape has.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # foreign objects beside the weights, or worse
            content = read_inert(path)
            logger.info("%s holds more than tensors; what else it names was neither loaded nor run", path)
        content = content["state"]["model"] if isinstance(content.get("state"), dict) else content
        entries = list(content.items())
    except Exception as error:  # a foreign file can fail in any way
        raise ValueError(f"{path} cannot be read as a state dict ({error}); copy or download it again") from error
    for name, value in entries:
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        whole = plain and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
        if not whole or not isinstance(name, str):
            raise ValueError(
                f"{path}: {name!r} is no dense tensor by name but a {type(value).__name__}; save the tensors of the "
                "model alone, whole and dense"
            )
    return content


def find_tokenizer(
    named: str | None, source: Source, config: PreTrainedConfig
) -> tuple[PreTrainedTokenizerBase | None, str | None]:
    """Find the tokenizer of a converted model: the named one, else the source's own, else the original's from the Hub.

    Args:
        named: a folder, a vocab.txt or a Hub id.

    Returns:
        The tokenizer and where it is from, for the record; (None, None) with a warning where there is none. Raises
        ValueError if it does not work, or not with the model.
    """
    own = next((folder for folder in source.folders if any((folder / name).is_file() for name in VOCABULARIES)), None)
    if named is None and own:
        tokenizer, origin = read_tokenizer(own), "the source's own"
    elif named is not None and Path(named).exists():
        tokenizer, origin = read_tokenizer(Path(named)), Path(named).resolve().name
    else:
        repo_id = named or ORIGINAL_TOKENIZER
        try:
            if named is None and not ORIGINAL_IDS <= config.vocab_size < ORIGINAL_IDS + 8:
                raise HubError(f"{repo_id} is not of a model with vocab_size={config.vocab_size}")
            folder, _, _ = download(repo_id, None, lambda _: list(TOKENIZER_FILES))
        except HubError as error:
            if named is not None:
                raise
            logger.warning("the folder is written without a tokenizer: %s; name one with --tokenizer", error)
            return None, None
        tokenizer, origin = read_tokenizer(folder), f"{repo_id}@{folder.name}"
    try:
        works = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens) and tokenizer(SENTENCE)["input_ids"]
        why = "no words, or no tokens"
    except Exception as error:  # of foreign settings, which can fail in any way
        works, why = False, f"{type(error).__name__}: {error}"
    if not works:
        raise ValueError(f"tokenizer ({origin}) fails on {SENTENCE!r} ({why}); name another one (--tokenizer)")
    if tokenizer.pad_token_id is None or config.pad_token_id not in (None, tokenizer.pad_token_id):
        raise ValueError(
            f"tokenizer ({origin}) pads with id {tokenizer.pad_token_id} but the model has "
            f"pad_token_id={config.pad_token_id}; name the one it was trained with (--tokenizer), or correct "
            "pad_token_id in the configuration (--config)"
        )
    check_tokenizer(tokenizer, config.vocab_size)
    return tokenizer, origin


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a folder or a vocab.txt. Other files are not looked at: a config.json may name code."""
    files = {"vocab.txt": path} if path.is_file() else {name: path / name for name in TOKENIZER_FILES}
    files = {name: file for name, file in files.items() if file.is_file()}
    with tempfile.TemporaryDirectory() as scratch:
        for name, file in files.items():
            shutil.copyfile(file, Path(scratch) / name)
        try:
            check_model_files(Path(scratch))
            tokenizer_class = AutoTokenizer if "tokenizer_config.json" in files else BertTokenizerFast
            return tokenizer_class.from_pretrained(scratch, trust_remote_code=False)
        except Exception as error:  # a foreign file can fail in any way
            message = str(error).replace(scratch, str(path))
            raise ValueError(f"tokenizer {path} cannot be read ({type(error).__name__}: {message})") from error
