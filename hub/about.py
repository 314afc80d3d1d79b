"""What only its maker knows of a model: licence, data, limits. A small YAML file, for the card."""

import dataclasses
import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as the Hub's metadata spells them
DATA_SET = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class Data:
    """One source of training data. `hub` is its data set on the Hub, where it has one."""

    name: str
    license: str
    hub: str | None = None


@dataclass(frozen=True)
class About:
    """Fields of the YAML file; all of them may be left out.

    Attributes:
        license: of the weights, as the Hub's metadata spells it ("apache-2.0"). None: not stated.
        language: codes of the languages it reads.
        data: what it was trained on.
        limits: sentences.
        text: Markdown about this very model.
    """

    license: str | None = None
    language: list[str] = field(default_factory=list)
    data: list[Data] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    text: str = ""


def read_about(file: Path) -> About:
    """Read such a file.

    Raises:
        ValueError: it is no YAML mapping, or a field is unknown or of the wrong kind.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"about {file} is no YAML file ({' '.join(str(error).split())})") from error
    fields = _fields(content, About, f"about {file}")
    for name, kind in (("license", str), ("text", str), ("language", list), ("data", list), ("limits", list)):
        if name in fields and not isinstance(fields[name], kind):
            what = "a list" if kind is list else "text"
            raise ValueError(f"about {file}: {name}={fields[name]!r} is not {what}")
    if not LICENSE.fullmatch(fields.get("license", "none")):
        raise ValueError(f"about {file}: license={fields['license']!r} is none of the Hub's, as apache-2.0 is")
    data = [_fields(entry, Data, f"about {file}: data[{i}]") for i, entry in enumerate(fields.get("data", []))]
    for i, entry in enumerate(data):
        for name in ("name", "license"):
            if not isinstance(entry.get(name), str):
                raise ValueError(f"about {file}: data[{i}] has no {name}; every source says its name and its licence")
        if not DATA_SET.fullmatch(entry.get("hub") or "none"):
            raise ValueError(f"about {file}: data[{i}] has hub={entry['hub']!r}, which is no data set (org/name)")
    return About(**fields | {"data": [Data(**entry) for entry in data]})


def _fields(content, cls, where: str) -> dict:
    known = [field.name for field in dataclasses.fields(cls)]
    if not isinstance(content, dict):
        raise ValueError(f"{where} is no mapping; its fields are {', '.join(known)}")
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0)[0]
            raise ValueError(f"{where} has a field {name!r} that is unknown; the nearest one is {near!r}")
    return content
