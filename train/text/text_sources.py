"""The `data.sources` of pretraining: what each one is, and its shares of the mixture (paper Table 2)."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from m2bert.schema import Schema, checked

from .splits import refuse_test
from .text_files import TextFiles, find_files

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DEFAULT_SHARES = {"variable": 0.3, "maximum": 0.7}  # of the examples, over all sources (paper section A.3)
TOLERANCE = 1e-6


class SourceEntry(Schema):
    """One entry of `data.sources` as it is written; see `Source`."""

    path: str | None
    name: str | None = None
    split: str | None = None
    validation_split: str | None = None
    column: str | None = None
    config: str | None = None
    revision: str | None = None
    rows_per_document: Annotated[int, Field(ge=1)] = 1
    variable: float = 0.0
    maximum: float = 0.0


@dataclass(frozen=True)
class Source:
    """One entry of `data.sources`.

    Args:
        path: a local folder or file; or a data set on the Hub, as text.
        name: in logs and metrics; default the last part of the path.
        split: trained on.
        validation_split: held out; None carves a hundredth of the documents out of `split`, by the hash of their
            text. Always None for a single file.
        column: holds the text; default `text`, or `passage` in a LoCoV1 folder.
        config, revision: of a data set on the Hub.
        rows_per_document: successive rows joined to one document, where a row is less (a sentence).
        shares: of the mixture's examples: {"variable": .., "maximum": ..}.
    """

    path: Path | str
    name: str
    split: str = "train"
    validation_split: str | None = "validation"
    column: str | None = None
    config: str | None = None
    revision: str | None = None
    rows_per_document: int = 1
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def on_hub(self) -> bool:
        return isinstance(self.path, str)

    def files(self, split: str) -> TextFiles:
        """Return the local files of a split."""
        return TextFiles(find_files(self.path, split), self.column, self.rows_per_document)

    def check_splits(self):
        """Raise ValueError if a local source lacks a split."""
        for split in (self.split, self.validation_split):
            if split is not None and not self.on_hub:
                self.files(split)

    def check_columns(self):
        """Raise ValueError if a local parquet file has no text in the column that is read."""
        for split in (self.split, self.validation_split):
            if split is not None and not self.on_hub:
                self.files(split).check_columns()


def parse_sources(entries: list, local_folder: Callable[[str | None], Path]) -> list[Source]:
    """Sources with their shares; those without any share are left out.

    Args:
        entries: of `data.sources`: mappings with `path` and optionally other keys of Source, `variable`, `maximum`.
            Where no entry says a share, sources are equal, 0.3 of the examples variable and 0.7 maximum; otherwise a
            share not said is 0.
        local_folder: gives the folder of the path null.

    Raises:
        ValueError: no or a malformed entry, an unknown key (with the nearest known one), two sources of one name, a
            path that is nothing, the split test, a validation split that is trained on, or shares that do not sum to 1.
    """
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"data.sources={entries!r} must be a list of at least one source, as [{{path: FOLDER}}]")
    for number, entry in enumerate(entries):
        check_entry(entry, number)
    if not any(kind in entry for entry in entries for kind in DEFAULT_SHARES):
        equal = {kind: share / len(entries) for kind, share in DEFAULT_SHARES.items()}
        entries = [entry | equal for entry in entries]
    sources = [make_source(entry, local_folder) for entry in entries]
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1 or "/" in name:
            raise ValueError(
                f"data.sources: the name {name!r} is there twice, or holds a /; give each a name of its own"
            )
    check_shares(sources)
    return [source for source in sources if any(source.shares.values())]


def check_entry(entry, number: int = 0):
    """Raise ValueError unless an entry is a mapping with a path and otherwise known keys."""
    if not isinstance(entry, dict):
        raise ValueError(f"data.sources[{number}]={entry!r} is no mapping with a path (null: pydocs)")
    checked(SourceEntry, entry, f"data.sources[{number}]")


def make_source(entry: dict, local_folder: Callable[[str | None], Path]) -> Source:
    settings = {key: value for key, value in entry.items() if key not in DEFAULT_SHARES}
    settings = {key: value for key, value in settings.items() if value is not None or key == "validation_split"}
    settings["path"] = find_path(entry["path"], local_folder)
    settings["shares"] = {kind: float(entry.get(kind, 0.0)) for kind in DEFAULT_SHARES}
    settings.setdefault("name", "pydocs" if entry["path"] is None else Path(entry["path"]).name)
    if isinstance(settings["path"], Path) and settings["path"].is_file():
        for key in ("split", "validation_split"):
            if settings.get(key) is not None:
                raise ValueError(
                    f"data.sources: {entry['path']} is one file and has no {key}; its validation is carved"
                )
        settings["validation_split"] = None
    source = Source(**settings)
    if not source.on_hub and (source.config or source.revision):
        raise ValueError(f"data.sources: {entry['path']} is local and has no config or revision; leave them out")
    for key in ("split", "validation_split"):
        refuse_test(f"data.sources: {key}", getattr(source, key) or "")
    if source.split == source.validation_split:
        raise ValueError(
            f"data.sources: split and validation_split of {entry['path']!r} are both {source.split!r}; name another "
            "one to validate on, or null, which holds a hundredth of the documents out"
        )
    return source


def find_path(path: str | None, local_folder: Callable[[str | None], Path]) -> Path | str:
    """The local path, or the name of a data set on the Hub."""
    if path is None:
        return local_folder(None)
    if Path(path).expanduser().exists():
        return Path(path).expanduser()
    if HUB_ID.fullmatch(path):
        return path
    raise ValueError(
        f"data.sources: {path!r} is neither a file, a folder, nor a data set on the Hub (ORGANISATION/NAME)"
    )


def check_shares(sources: list[Source]):
    """Raise ValueError unless the shares are in [0, 1] and sum to 1."""
    shares = [(source.name, kind, share) for source in sources for kind, share in source.shares.items()]
    total = sum(share for _, _, share in shares)
    if abs(total - 1) > TOLERANCE or any(not 0 <= share <= 1 for _, _, share in shares):
        listed = ", ".join(f"{name} {kind} {share:g}" for name, kind, share in shares)
        raise ValueError(f"data.sources: the shares must be from 0 to 1 and sum to 1, not {total:g}: {listed}")
