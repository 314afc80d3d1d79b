"""Where a model of the research code comes from: a file, a folder, or one commit of a Hub repository.

Of a repository only what a conversion reads is downloaded, and never code.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from m2bert.files import parse_yaml

from ..hub_errors import HubError, plain_errors
from .weights import INDEX, SUFFIXES, choose_weights, shards

VOCABULARIES = ("tokenizer.json", "vocab.txt")
TOKENIZER_FILES = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json")
BESIDE = (*TOKENIZER_FILES, "config.json", "README.md")
CARD_BYTES = 100_000  # of a card; its metadata come first
LICENCE = re.compile(r"^license:[ \t]+[\"']?([A-Za-z0-9][A-Za-z0-9.+-]{0,60})[\"']?[ \t]*(?:[ \t]#.*)?$", re.MULTILINE)


@dataclass
class Source:
    """A model to convert."""

    name: str  # org/name, or the name of a file or folder
    revision: str | None  # commit of the repository
    weights: Path  # a file, or the index of several
    root: Path  # the folder that was named, or that holds the named file
    cached: bool = False  # the Hub was not reached, so what is not in the cache is not known

    @property
    def folders(self) -> list[Path]:
        """Where files that belong to the weights may lie, the nearest first."""
        return list(dict.fromkeys([self.weights.parent, self.root]))

    def beside(self, name: str) -> Path | None:
        """A file that belongs to the weights."""
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)

    def licence(self) -> str | None:
        """What the card of a Hub repository or its clone states, if that has the form of a licence's id there. The card
        is foreign: nothing else of it is parsed."""
        if (card := self.beside("README.md")) is None:
            return None
        with card.open("rb") as file:
            text = file.read(CARD_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
        head = re.match(r"\ufeff?---\n(.*?)^---", text, re.DOTALL | re.MULTILINE)
        stated = LICENCE.findall(head[1]) if head else []
        return stated[0] if len(stated) == 1 and isinstance(parse_yaml(stated[0], "a license"), str) else None


def find_source(source: str, revision: str | None = None, file: str | None = None) -> Source:
    """
    Args:
        source: a file, a folder, or the id of a Hub repository; what exists here comes first.
        revision: branch, tag or commit of the repository (main).
        file: name of the weights (with their folder's, if they lie in one), where there are several.

    Raises:
        ValueError: it is none of them, cannot be reached, or has no weights or several.
    """
    path = Path(source)
    if source and path.exists():
        if revision is not None:
            raise ValueError(
                f"--revision {revision!r} is of Hub repositories, but {source} is a path here; leave it out"
            )
        if path.is_dir():
            names = [entry.name for entry in path.iterdir() if entry.is_file()]
            if file is not None and not Path(file).is_absolute() and ".." not in Path(file).parts:
                names += [file] if (path / file).is_file() else []
            return Source(path.resolve().name, None, path / choose_weights(names, file, source), path)
        if file is not None:
            raise ValueError(f"--file {file!r} chooses in a folder or repository, but {source} is a file; leave it out")
        return Source(path.name, None, path, path.parent)
    if not is_hub_id(source) or "/" not in source:
        raise ValueError(f"{source or repr(source)} is no file, no folder and no Hub id (org/name)")
    return _download(source, revision, file)


def is_hub_id(name: str) -> bool:
    """Whether it has the form of a Hub id, and not that of a weights file's path."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith((*SUFFIXES, ".json", ".txt"))


def _download(repo_id: str, revision: str | None, file: str | None) -> Source:
    commit, names, cached = list_files(repo_id, revision)
    chosen = choose_weights(names, file, f"{repo_id} at {commit}")
    folder = "".join(chosen.rpartition("/")[:2])
    beside = {place + name for name in BESIDE for place in (folder, "") if place + name in names}
    root = fetch(repo_id, commit, [chosen, *sorted(beside)])
    weights = root / chosen
    if chosen.endswith(INDEX):
        parts = [folder + name for name in shards(weights)]
        if missing := [name for name in parts if name not in names]:
            raise ValueError(f"{repo_id} at {commit} lacks {', '.join(missing)}, which {chosen} names")
        fetch(repo_id, commit, parts)
    return Source(repo_id, commit, weights, root, cached)


def list_files(repo_id: str, revision: str | None = None) -> tuple[str, list[str], bool]:
    """Commit of a repository's revision, and its files; where the Hub cannot be reached, those in the cache, and True.

    Raises:
        HubError: there is no such repository or revision, the Hub refuses or fails, or it cannot be reached and the
            cache has nothing.
    """
    with plain_errors(repo_id):
        try:
            folder = _note_commit(repo_id, revision)
        except RevisionNotFoundError as error:
            raise HubError(f"Hub repository {repo_id} has no revision {revision!r} (--revision)") from error
        except LocalEntryNotFoundError as error:
            raise HubError(_explain(repo_id, error.__cause__)) from error
        except HTTPError as error:  # of the library below, too
            raise HubError(_explain(repo_id, error)) from error
        try:
            info = HfApi().model_info(repo_id, revision=revision)
            return info.sha, [entry.rfilename for entry in info.siblings], False
        except HfHubHTTPError as error:  # the Hub is there: what the cache has may be old, or not all
            raise HubError(_explain(repo_id, error)) from error
        except (HTTPError, OfflineModeIsEnabled):
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            return folder.name, names, True


def _note_commit(repo_id: str, revision: str | None) -> Path:
    """The cache's folder of a revision, whose commit the cache notes here for when there is no network."""
    client = logging.getLogger("huggingface_hub")  # it warns that no file is asked for, which is meant
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        offline = is_offline_mode()
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[], local_files_only=offline))
    finally:
        client.setLevel(level)


def _explain(repo_id: str, reason: BaseException | None) -> str:
    """One line about a repository that is neither reached nor cached."""
    if isinstance(reason, GatedRepoError):
        return f"Hub repository {repo_id} is gated: ask for access on its page, then `hf auth login`"
    if isinstance(reason, RepositoryNotFoundError):
        return (
            f"{repo_id} is no file or folder here and no Hub repository that you may read: check the name, or, if it "
            "is private, `hf auth login`"
        )
    if isinstance(reason, HfHubHTTPError) and reason.response is not None:
        return (
            f"{repo_id} is no file or folder here, and the Hub answers with HTTP status {reason.response.status_code}: "
            "check `hf auth whoami` and try again later, or set HF_HUB_OFFLINE=1 to take what the cache has"
        )
    what = type(reason).__name__ if reason is not None else "HF_HUB_OFFLINE is set"
    return (
        f"{repo_id} is no file or folder here, the Hub cannot be reached ({what}) and the cache has no copy: check the "
        "network, or download it elsewhere and name the folder"
    )


def fetch(repo_id: str, commit: str, names: list[str]) -> Path:
    """The folder of a commit with these files in it, from the cache or downloaded. Raises HubError if one is not."""
    with plain_errors(repo_id):
        try:
            files = [Path(hf_hub_download(repo_id, name, revision=commit)) for name in names]
        except LocalEntryNotFoundError as error:
            raise HubError(
                f"{repo_id}: the cache lacks some of {', '.join(names)}, and the Hub gives none; download them (online)"
            ) from error
        except HTTPError as error:
            raise HubError(_explain(repo_id, error)) from error
        return files[0].parents[names[0].count("/")]
