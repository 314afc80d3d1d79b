"""What `m2bert eval` shall measure: settings, the same from flags and from YAML, and the systems known by name.

A system is a lexical baseline (bm25, tfidf-rp), a model of mteb (mteb:NAME), or a sentence-transformers model.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from m2bert.files import read_yaml
from m2bert.schema import Schema, checked
from m2bert.terminal import nearest

if TYPE_CHECKING:
    from .encoders.protocol import Encoder
    from .from_mteb import MtebRanker

BASELINES = ("bm25", "tfidf-rp")
MTEB_PREFIX = "mteb:"

T = TypeVar("T")
# A single entry stands for a list of one.
Several = Annotated[
    tuple[T, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list | tuple) else (value,))
]


class Distractors(Schema):
    """`count` documents from `path` that answer nothing, drawn with `seed`."""

    path: str
    count: int = Field(2000, ge=1)
    seed: int = 0


class TaskSettings(Schema):
    """Tasks to load from one place.

    Attributes:
        data: a folder of tables, of BEIR or with queries.csv, "locov1", "locov0", a Hub pair, or "mteb".
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
        trained_on: tasks (searched for overlap) or names of data.
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
    hybrids: Several[Literal["rerank", "rrf", "standardized", "weighted"]] = ()
    rerank_depth: int = Field(100, ge=1)
    output: str | None = None

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read a YAML file with the fields of this class."""
        return checked(cls, read_yaml(path), str(path))


def is_dense(system: str) -> bool:
    """Return whether the name stands for a model rather than for a lexical baseline."""
    return system != "bm25" and not re.fullmatch("tfidf-rp(:.*)?", system)


def check_system(system: str, others: list[str]) -> None:
    """Refuse a name that cannot work, before anything slow begins.

    Args:
        others: all systems of the run; plain `tfidf-rp` takes its width from a model among them.
    """
    path = expanded(system)
    if system == "tfidf-rp" and not any(is_dense(other) for other in others):
        problem = "takes its width from a dense encoder; add one, or write tfidf-rp:256"
    elif system.startswith("tfidf-rp:") and not re.fullmatch("tfidf-rp:[1-9][0-9]*", system):
        problem = "has no positive number as width; write tfidf-rp:256"
    elif not system.removeprefix(MTEB_PREFIX).strip():
        problem = "is empty; give a model folder, a Hub id, bm25 or tfidf-rp:256"
    elif not is_dense(system) or system.startswith(MTEB_PREFIX) or Path(path).is_dir():
        return
    elif "/" not in system and (meant := nearest(system.lower(), BASELINES)):
        problem = f"is unknown{meant}"
    elif "/" not in system or path.startswith((".", "/", "~", "$")) or path.count("/") > 1:  # no Hub id looks like this
        problem = "is no folder that is there; give a model folder, a Hub id as org/name, bm25 or tfidf-rp:256"
    else:
        return
    raise ValueError(f"encoder {system!r} {problem}")


def expanded(system: str) -> str:
    """Fill in `~` and environment variables, so that a shared configuration need not hold one machine's paths."""
    return os.path.expanduser(os.path.expandvars(system))


def load_system(system: str) -> "Encoder | MtebRanker":
    """Load a model by name: `mteb:NAME`, a model folder, or a Hub id (`org/name` or `org/name@commit`).

    It is an encoder; but mteb's models that search by themselves (ColBERT, BM25) are rankers.
    """
    if system.startswith(MTEB_PREFIX):
        from .from_mteb import load_mteb_model

        return load_mteb_model(system.removeprefix(MTEB_PREFIX))
    from .encoders.sentence_transformer import SentenceTransformerEncoder

    return SentenceTransformerEncoder(expanded(system))


def load_encoder(system: str) -> "Encoder":
    """Load a model as `load_system` does, one that gives vectors."""
    model = load_system(system)
    if hasattr(model, "rank"):
        raise ValueError(f"encoder {system!r} searches by itself and gives no vectors; only `m2bert eval` can use it")
    return model


def labels(systems: list[str]) -> dict[str, str]:
    """Return {system: what tables call it}: the last part of its path or id, the last two if it is just "model"; or
    its full name, if another would be called the same."""
    short = {}
    for system in systems:
        name = system.removeprefix(MTEB_PREFIX)
        if name == system and is_dense(system) and Path(expanded(system)).is_dir():
            name = os.path.abspath(expanded(system))  # "." has a name
        parts = Path(name).parts
        short[system] = "/".join(parts[-2:] if parts[-1] == "model" else parts[-1:])
    return {system: system if list(short.values()).count(name) > 1 else name for system, name in short.items()}
