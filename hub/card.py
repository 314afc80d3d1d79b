"""The README.md card of a model folder, and what it is filled from: the maker's word, records, scores."""

import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined, TemplateError
from pydantic import Field

from m2bert.files import format_yaml, parse_json, parse_yaml, read_text, read_yaml
from m2bert.schema import FOREIGN, Schema, checked
from m2bert.terminal import shown

from .scores import Scores, model_index

if TYPE_CHECKING:  # slow, and not needed to read what the maker says
    from transformers import PreTrainedModel

LICENSE = r"[a-z0-9][a-z0-9.+-]*"  # as the Hub's metadata spells them
TASKS = {  # class: library, task, an input of its pipeline to try (transformers 5 has none for two of them)
    "M2BertModel": ("sentence-transformers", "sentence-similarity", ""),
    "M2BertForMaskedLM": ("transformers", "fill-mask", "The committee approved the [MASK]."),
    "M2BertForSequenceClassification": ("transformers", "text-classification", "The committee approved the budget."),
    "M2BertForTokenClassification": ("transformers", "token-classification", "The committee approved the budget."),
    "M2BertForQuestionAnswering": ("transformers", "question-answering", ""),
    "M2BertForMultipleChoice": ("transformers", "multiple-choice", ""),
}
TAGS = ["m2bert", "monarch-mixer", "long-context", "retrieval", "feature-extraction", "custom_code"]
SHOWN_DIGITS = 12  # of a fingerprint
# A path that begins at a root, a home or a parent folder, and is not part of a URL or of org/name.
PATH = re.compile(r"(?<![\w.~:/-])(?:file://)?(?:~|\.{1,2}(?=/))?(?:/[^\s/'\"=,;:]+)+/?")
YAML_HEAD = re.compile(r"\s*---\s*?\n(.*?)^---\s*?$", re.DOTALL | re.MULTILINE)
TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")


class Data(Schema):
    """One source of training data. `hub` is its data set on the Hub, if it has one."""

    name: str = Field(min_length=1)
    license: str = Field(min_length=1)
    hub: Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")] | None = None


class About(Schema):
    """The YAML file about.yaml, in which a model's maker says what nobody else knows. Every field may be left out."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None  # of the model, where no repository names it
    license: Annotated[str, Field(pattern=f"^{LICENSE}$")] | None = None  # of the weights; None: not stated
    language: list[str] = []  # codes of the languages it reads
    data: list[Data] = []  # what it was trained on
    limits: list[str] = []  # sentences
    text: str = ""  # Markdown about this model


def read_about(file: Path) -> About:
    """Read about.yaml. Raises ValueError if it is not a YAML mapping of About's fields."""
    return checked(About, read_yaml(file), str(file))


class Conversion(Schema):
    """conversion.json, of `m2bert convert` or of a checkpoint that brings it along."""

    model_config = FOREIGN

    source: str
    revision: str | None
    license: str | None
    files: dict[str, str]
    tensors: dict[str, Any]
    options: dict[str, Any]
    parity: dict[str, Any]
    masked: dict[str, Any] | None
    date: str


class Training(Schema):
    """training.json, which may be foreign, too."""

    model_config = FOREIGN

    config: dict[str, Any] | None = None
    data_fingerprint: str | None = None
    versions: dict[str, str] = {}


KINDS = {"training": Training, "conversion": Conversion}


class CardData(Schema):
    """The fields used here of the YAML at the head of any README.md."""

    model_config = FOREIGN

    sdk: str | None = None
    base_model: str | list[str] | None = None
    tags: list[str] | None = None
    license: Any = None


def read_metadata(card: Path | None) -> CardData:
    """Read the head of a README.md, if there is any. Raises ValueError if it is malformed."""
    head = YAML_HEAD.match(read_text(card)) if card and card.is_file() else None
    where = f"the YAML at the head of {card}"
    return checked(CardData, (parse_yaml(head[1], where) or {}) if head else {}, where)


def without_private(value):
    """Return plain JSON with paths cut to their last part and tokens of the Hub masked, in values and in keys."""
    if isinstance(value, dict):
        return {without_private(key): without_private(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_private(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return TOKEN.sub("hf_...", PATH.sub(lambda path: path[0].rstrip("/").rpartition("/")[2], value))


def public_record(name: str, text: str) -> dict:
    """Return the JSON object of a record by `without_private`. Raises ValueError, with its `name`, if it is none."""
    try:
        record = without_private(parse_json(text, name))
        if isinstance(record, dict):
            return record
        problem = "no JSON object"
    except RecursionError:
        problem = "JSON that is nested too deeply"
    raise ValueError(f"{name} holds {problem}; remove it or write it again")


@dataclass(frozen=True)
class Card:
    """What a card says besides what the model itself tells."""

    repository: str | None = None  # its name on the Hub, if it is known yet
    about: About = field(default_factory=About)
    scores: Scores = field(default_factory=Scores)
    training: dict = field(default_factory=dict)  # the record training.json, if the folder has one
    conversion: dict = field(default_factory=dict)  # conversion.json
    weights: list[str] = field(default_factory=list)  # names and first digits of their sha256
    document_prompt: str = ""  # what sentence-transformers puts before documents
    max_tokens: int = 0
    has_tokenizer: bool = True
    has_handler: bool = False
    has_onnx: bool = False

    @property
    def license(self) -> str | None:
        """License of the weights: as the maker states it, or else the source of a conversion."""
        stated = self.about.license or self.conversion.get("license")
        return stated if stated and re.fullmatch(LICENSE, stated) else None


def render_card(model: "PreTrainedModel", card: Card) -> str:
    """Return Markdown with the Hub's metadata block."""
    library, task, example = TASKS[type(model).__name__]
    optional = {
        "license": card.license,
        "language": card.about.language,
        "datasets": [data.hub for data in card.about.data if data.hub],
        "base_model": card.conversion.get("source") if card.conversion.get("revision") else None,
    }
    if card.scores.own:
        name = (card.repository or card.about.name or f"m2bert-{card.max_tokens}").split("/")[-1]
        optional |= {"model_name": name, "eval_results": model_index(card.scores)}
    optional = {name: value for name, value in optional.items() if value}
    metadata = ModelCardData(library_name=library, pipeline_tag=task, tags=TAGS, **optional)
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False, undefined=StrictUndefined
    )
    environment.filters |= {
        "points": lambda score: f"{100 * score:.1f}",  # a score of 0 to 1
        "short": lambda digest: str(digest)[:SHOWN_DIGITS],
        "fenced": fenced,
        "cell": cell,
        "literal": repr,
    }
    template = files("m2bert.hub").joinpath("templates/model_card.md").read_text(encoding="utf-8")
    try:
        return environment.from_string(template).render(
            metadata=format_yaml(metadata.to_dict()).strip(),
            title=card.repository or card.about.name or f"M2-BERT, {card.max_tokens} tokens",
            config=model.config,
            card=card,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            task=task,
            example=example,
            auto_class=type(model).__name__.replace("M2Bert", "AutoModel", 1),
        )
    except (TemplateError, TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(
            f"the card cannot be made from training.json or conversion.json ({error}); remove or correct the record"
        ) from error


def cell(text) -> str:
    """Return foreign text on one line, with what Markdown or HTML would read as markup escaped."""
    return re.sub(r"([\\`|<>\[\]])", r"\\\1", shown(" ".join(str(text).split())))


def fenced(value) -> str:
    """Return a value as a code block of YAML, whose fence is longer than any in the value."""
    text = format_yaml(value).strip()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text}\n{fence}"
