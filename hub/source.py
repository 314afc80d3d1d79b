"""Where a model of the research code comes from: a file, a folder, or one commit of a Hub repository.

Of a repository only what a conversion reads is downloaded, and never code.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, is_offline_mode, metadata_load, snapshot_download
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

from .weights import INDEX, SUFFIXES, choose_weights, shards

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
BESIDE = (*TOKENIZER_FILES, "config.json", "README.md")


@dataclass
class Source:
    """A model to convert."""

    name: str  # org/name, or the name of a file or folder
    revision: str | None  # commit of the repository
    weights: Path  # a file, or the index of several

    @property
    def folder(self) -> Path:
        return self.weights.parent

    def licence(self) -> str | None:
        """What the card of a Hub repository or its clone states."""
        card = self.folder / "README.md"
        try:
            metadata = metadata_load(card) if card.is_file() else None
        except Exception:  # a foreign card; whatever is wrong with it, it states no licence
            return None
        stated = metadata.get("license") if isinstance(metadata, dict) else None
        return ", ".join(map(str, stated)) if isinstance(stated, list) else stated and str(stated)


def find_source(source: str, revision: str | None = None, file: str | None = None) -> Source:
    """
    Args:
        source: a file, a folder, or the id of a Hub repository; what exists here comes first.
        revision: branch, tag or commit of the repository (main).
        file: name of the weights, where a folder or repository has several.

    Raises:
        ValueError: it is none of them, cannot be reached, or has no weights or several.
    """
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise ValueError(
                f"--revision {revision!r} is of Hub repositories, but {source} is a path here; leave it out"
            )
        if path.is_dir():
            names = [entry.name for entry in path.iterdir() if entry.is_file()]
            return Source(path.resolve().name, None, path / choose_weights(names, file, source))
        if file is not None:
            raise ValueError(f"--file {file!r} chooses in a folder or repository, but {source} is a file; leave it out")
        return Source(path.name, None, path)
    if not is_hub_id(source) or "/" not in source:
        raise ValueError(f"{source} is no file, no folder and no Hub id (org/name)")
    return _download(source, revision, file)


def is_hub_id(name: str) -> bool:
    """Whether it has the form of a Hub id, and not that of a weights file's path."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.endswith((*SUFFIXES, ".json", ".txt"))


def _download(repo_id: str, revision: str | None, file: str | None) -> Source:
    commit, names = list_files(repo_id, revision)
    chosen = choose_weights(names, file, f"{repo_id} at {commit}")
    weights = fetch(repo_id, commit, [chosen, *(name for name in BESIDE if name in names)]) / chosen
    if chosen.endswith(INDEX):
        folder = chosen.rpartition("/")[0]
        parts = [f"{folder}/{name}" if folder else name for name in shards(weights)]
        if missing := [name for name in parts if name not in names]:
            raise ValueError(f"{repo_id} at {commit} lacks {', '.join(missing)}, which {chosen} names")
        fetch(repo_id, commit, parts)
    return Source(repo_id, commit, weights)


def list_files(repo_id: str, revision: str | None = None) -> tuple[str, list[str]]:
    """Commit of a repository's revision, and its files; where the Hub cannot be reached, those in the cache.

    Raises:
        ValueError: there is no such repository or revision, or no way to it, and none in the cache.
    """
    try:  # no file: which commit it is, which the cache notes for when there is no network
        offline = is_offline_mode()
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=[], local_files_only=offline))
    except RevisionNotFoundError as error:
        raise ValueError(f"Hub repository {repo_id} has no revision {revision!r} (--revision)") from error
    except LocalEntryNotFoundError as error:
        raise ValueError(_explain(repo_id, error.__cause__)) from error
    except HTTPError as error:  # of the library below, too
        raise ValueError(_explain(repo_id, error)) from error
    try:
        return folder.name, HfApi().list_repo_files(repo_id, revision=folder.name)
    except (HTTPError, OfflineModeIsEnabled):
        return folder.name, [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _explain(repo_id: str, reason: BaseException | None) -> str:
    """One line about a repository that is neither reached nor cached."""
    if isinstance(reason, GatedRepoError):
        return f"Hub repository {repo_id} is gated: ask for access on its page, then `hf auth login`"
    if isinstance(reason, RepositoryNotFoundError):
        return (
            f"{repo_id} is no file or folder here and no Hub repository that you may read: check the name, or, if it "
            "is private, `hf auth login`"
        )
    what = type(reason).__name__ if reason is not None else "HF_HUB_OFFLINE is set"
    if isinstance(reason, HfHubHTTPError) and reason.response is not None:
        what = f"HTTP status {reason.response.status_code}"
    return (
        f"{repo_id} is no file or folder here, the Hub cannot be reached ({what}) and the cache has no copy: check the "
        "network, or download it elsewhere and name the folder"
    )


def fetch(repo_id: str, commit: str, names: list[str]) -> Path:
    """The folder of a commit with these files in it, from the cache or downloaded. Raises ValueError if one is not."""
    try:
        files = [Path(hf_hub_download(repo_id, name, revision=commit)) for name in names]
    except LocalEntryNotFoundError as error:
        raise ValueError(f"{repo_id}: the cache has not all of {', '.join(names)}; download them (online)") from error
    except HTTPError as error:
        raise ValueError(_explain(repo_id, error)) from error
    return files[0].parents[names[0].count("/")]
