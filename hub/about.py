"""What only its maker knows of a model: licence, data, limits. A small YAML file, for the card."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from m2bert.files import read_yaml
from m2bert.schema import Schema, checked
from m2bert.terminal import shown

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as the Hub's metadata spells them
DATA_SET = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def _license(text: str) -> str:
    if not LICENSE.fullmatch(text):
        raise ValueError(f"{shown(text)!r} is no license id of the Hub, such as apache-2.0")
    return text


def _data_set(text: str) -> str:
    if not DATA_SET.fullmatch(text):
        raise ValueError(f"{shown(text)!r} is no data set of the Hub (org/name)")
    return text


class Data(Schema):
    """One source of training data. `hub` is its data set on the Hub, where it has one."""

    name: str = Field(min_length=1)
    license: str = Field(min_length=1)
    hub: Annotated[str, AfterValidator(_data_set)] | None = None


class About(Schema):
    """Fields of the YAML file; all of them may be left out.

    Attributes:
        license: of the weights, as the Hub's metadata spells it ("apache-2.0"). None: not stated.
        language: codes of the languages it reads.
        data: what it was trained on.
        limits: sentences.
        text: Markdown about this very model.
    """

    license: Annotated[str, AfterValidator(_license)] | None = None
    language: list[str] = []
    data: list[Data] = []
    limits: list[str] = []
    text: str = ""


def read_about(file: Path) -> About:
    """Read such a file.

    Raises:
        ValueError: it is no YAML mapping, or a field is unknown or of the wrong kind.
    """
    return checked(About, read_yaml(file), str(file))
