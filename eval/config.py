"""What `m2bert eval` shall measure: the same settings from flags and from a YAML file."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from m2bert.files import read_yaml
from m2bert.schema import Schema, checked

T = TypeVar("T")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Several = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]  # a single entry stands for a list of one


class Distractors(Schema):
    """`count` documents from `path` that answer nothing, drawn with `seed`."""

    path: str
    count: int = Field(2000, ge=1)
    seed: int = 0


class TaskSettings(Schema):
    """Tasks to load from one place.

    Attributes:
        data: a folder of tables, a folder with queries.csv, "locov1", "locov0", a Hub pair, or "mteb".
        names: tasks in it; all if empty.
        development_split: where the weight of a weighted hybrid is chosen.
    """

    data: str
    names: Several[str] = ()
    split: str = "test"
    documents: str = "documents"
    revision: str | None = None
    development_split: str = "validation"
    distractors: Distractors | None = None


class TrainingTask(Schema):
    """A retrieval task that a model was trained on, to be searched for overlap with what it is tested on."""

    data: str
    name: str
    split: str = "train"

    def __str__(self) -> str:
        return f"{self.name} ({self.split})"


class EncoderSettings(Schema):
    """One system; a plain text stands for its `model`.

    Attributes:
        model: bm25, tfidf-rp[:WIDTH], mteb:NAME, a model folder or a Hub id.
        name: what tables call it; the last part of `model` if not given.
        policies: for this encoder only, instead of the run's.
        trained_on: tasks (searched for overlap) or names of data; empty: not stated.
        paper_row: the row of the paper's tables that it repeats.
    """

    model: str
    name: str | None = None
    policies: Several[str] = ()
    trained_on: Several[TrainingTask | str] = ()
    paper_row: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class EvalConfig(Schema):
    """A whole run; see docs/evaluation.md for the YAML form."""

    tasks: Several[TaskSettings] = Field(min_length=1)
    encoders: Several[EncoderSettings] = Field(min_length=1)
    policies: Several[str] = ("truncate",)
    hybrids: Several[Literal["rerank", "rrf", "weighted"]] = ()
    rerank_depth: int = Field(100, ge=1)
    output: str | None = None

    @model_validator(mode="after")
    def _other_development_split(self) -> Self:
        for task in self.tasks:
            if "weighted" in self.hybrids and task.development_split == task.split:
                raise ValueError(f"development_split={task.split!r} is the split that is scored; choose another")
        return self

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read a YAML file with the fields of this class.

        Raises:
            ValueError: no such file, no YAML, an unknown or a missing key, a value of the wrong type.
        """
        return checked(cls, read_yaml(path), str(path))
