"""What `m2bert eval` shall measure: the same settings from flags and from a YAML file."""

import difflib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Self

import yaml

HYBRIDS = ("rerank", "rrf", "weighted")
MAX_DISTRACTORS = 10_000_000  # more is a typing error
SCALARS = {str: "a text", str | None: "a text", int: "a whole number"}  # what a field of this type must be


@dataclass(frozen=True)
class Distractors:
    """`count` documents from `path` that answer nothing, drawn with `seed`."""

    path: str
    count: int = 2000
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.count <= MAX_DISTRACTORS:
            raise ValueError(f"distractors.count={self.count} must be from 1 to {MAX_DISTRACTORS}")


@dataclass(frozen=True)
class TaskSettings:
    """Tasks to load from one place.

    Attributes:
        data: a folder of tables, a folder with queries.csv, "locov1", "locov0", a Hub pair, or "mteb".
        names: tasks in it; all if empty.
        development_split: where the weight of a weighted hybrid is chosen.
    """

    data: str
    names: tuple[str, ...] = ()
    split: str = "test"
    documents: str = "documents"
    revision: str | None = None
    development_split: str = "validation"
    distractors: Distractors | None = None


@dataclass(frozen=True)
class TrainingTask:
    """A retrieval task that a model was trained on, to be searched for overlap with what it is tested on."""

    data: str
    name: str
    split: str = "train"

    def __str__(self) -> str:
        return f"{self.name} ({self.split})"


@dataclass(frozen=True)
class EncoderSettings:
    """One system.

    Attributes:
        model: bm25, tfidf-rp[:WIDTH], mteb:NAME, a model folder or a Hub id.
        name: what tables call it; the last part of `model` if not given.
        policies: for this encoder only, instead of the run's.
        trained_on: tasks (searched for overlap) or names of data; empty: not stated.
        paper_row: the row of the paper's tables that it repeats.
    """

    model: str
    name: str | None = None
    policies: tuple[str, ...] = ()
    trained_on: tuple[TrainingTask | str, ...] = ()
    paper_row: str | None = None


@dataclass(frozen=True)
class EvalConfig:
    """A whole run; see docs/evaluation.md for the YAML form."""

    tasks: tuple[TaskSettings, ...]
    encoders: tuple[EncoderSettings, ...]
    policies: tuple[str, ...] = ("truncate",)
    hybrids: tuple[str, ...] = ()
    rerank_depth: int = 100
    output: str | None = None

    def __post_init__(self):
        for hybrid in self.hybrids:
            if hybrid not in HYBRIDS:
                raise ValueError(
                    f"hybrid {hybrid!r} is unknown{nearest(hybrid, HYBRIDS)}; there are {', '.join(HYBRIDS)}"
                )
        if not self.encoders:
            raise ValueError("no encoder given; name at least one: bm25, tfidf-rp:256, or a model folder")
        if not self.tasks:
            raise ValueError("no task given; name the data at least: --data FOLDER")
        for task in self.tasks:
            if "weighted" in self.hybrids and task.development_split == task.split:
                raise ValueError(f"development_split={task.split!r} is the split that is scored; choose another")
        if self.rerank_depth < 1:
            raise ValueError(f"rerank_depth={self.rerank_depth} leaves nothing to rerank; it must be at least 1")

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read a YAML file with the fields of this class; an encoder may be a plain name.

        Raises:
            ValueError: no such file, no YAML, an unknown or a missing key, a value of the wrong type.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"config {path} cannot be read: {' '.join(str(error).split())}") from error
        content = checked(content, cls, str(path))
        tasks = [_task(entry, f"tasks[{i}]") for i, entry in enumerate(as_list(content.get("tasks", [])))]
        encoders = [_encoder(entry, f"encoders[{i}]") for i, entry in enumerate(as_list(content.get("encoders", [])))]
        names = {key: strings(content[key], key) for key in ("policies", "hybrids") if key in content}
        return cls(**content | names | {"tasks": tuple(tasks), "encoders": tuple(encoders)})


def checked(content: object, settings: type, where: str) -> dict:
    """`content` if it is a mapping with keys of the dataclass `settings` only, none that it needs missing.

    Of the values, texts and numbers are checked too; what holds several is read by its own function.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where} is {content!r}; it must be a mapping with keys such as {fields(settings)[0].name}")
    known = [entry.name for entry in fields(settings)]
    for key in content:
        if key not in known:
            raise ValueError(f"{where} has the unknown key {key!r}{nearest(str(key), known)}; keys: {', '.join(known)}")
    for entry in fields(settings):
        if entry.default is MISSING and entry.name not in content:
            raise ValueError(f"{where} lacks the key {entry.name!r}; it has {', '.join(content) or 'none'}")
        value = content.get(entry.name, entry.default)
        if entry.type in SCALARS and (not isinstance(value, entry.type) or isinstance(value, bool)):
            raise ValueError(f"{where}.{entry.name} is {value!r}; it must be {SCALARS[entry.type]}")
    return content


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    """ ", did you mean 'x'?" without the question mark, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def as_list(value: object) -> list:
    """A single entry stands for a list of one."""
    return value if isinstance(value, list) else [value]


def strings(value: object, where: str) -> tuple[str, ...]:
    """One text or several."""
    values = as_list(value)
    for entry in values:
        if not isinstance(entry, str):
            raise ValueError(f"{where} has {entry!r}, which is no text; put it in quotes")
    return tuple(values)


def _task(entry: object, where: str) -> TaskSettings:
    content = dict(checked(entry, TaskSettings, where))
    if "names" in content:
        content["names"] = strings(content["names"], f"{where}.names")
    if content.get("distractors") is not None:
        distractors = checked(content["distractors"], Distractors, f"{where}.distractors")
        content["distractors"] = Distractors(**distractors)
    return TaskSettings(**content)


def _encoder(entry: object, where: str) -> EncoderSettings:
    if isinstance(entry, str):
        return EncoderSettings(entry)
    content = dict(checked(entry, EncoderSettings, where))
    if "policies" in content:
        content["policies"] = strings(content["policies"], f"{where}.policies")
    trained_on = as_list(content.get("trained_on", []))
    content["trained_on"] = tuple(
        training
        if isinstance(training, str)
        else TrainingTask(**checked(training, TrainingTask, f"{where}.trained_on"))
        for training in trained_on
    )
    return EncoderSettings(**content)
