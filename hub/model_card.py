"""The README.md card of a model folder: a template, filled from the model, its records and its scores."""

import re
from dataclasses import dataclass, field
from importlib.resources import files

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined, TemplateError
from transformers import PreTrainedModel

from m2bert.files import format_yaml
from m2bert.terminal import shown

from .about import LICENSE, About
from .scores import Scores, model_index

TASKS = {  # class: library, task, an input to try
    "M2BertModel": ("sentence-transformers", "sentence-similarity", ""),
    "M2BertForMaskedLM": ("transformers", "fill-mask", "The committee approved the [MASK]."),
    "M2BertForSequenceClassification": ("transformers", "text-classification", "The committee approved the budget."),
}
TAGS = ["m2bert", "monarch-mixer", "long-context", "retrieval", "feature-extraction", "custom_code"]
SHOWN_DIGITS = 12  # of a fingerprint


@dataclass(frozen=True)
class Card:
    """What a card says beside what the model itself tells.

    Attributes:
        repository: its name on the Hub, if it is known yet.
        about: what its maker says.
        scores: of `m2bert eval`.
        training, conversion: the records training.json and conversion.json, where the folder has them.
        document_prompt: what sentence-transformers puts before documents.
        max_tokens: the longest input.
        has_tokenizer, has_handler: whether the folder has these.
    """

    repository: str | None = None
    about: About = field(default_factory=About)
    scores: Scores = field(default_factory=Scores)
    training: dict = field(default_factory=dict)
    conversion: dict = field(default_factory=dict)
    document_prompt: str = ""
    max_tokens: int = 0
    has_tokenizer: bool = True
    has_handler: bool = False

    @property
    def license(self) -> str | None:
        """Of the weights: as stated, else as the source of a conversion states it."""
        stated = self.about.license or self.conversion.get("license")
        return stated if stated and LICENSE.fullmatch(stated) else None


def render_card(model: PreTrainedModel, card: Card) -> str:
    """Return Markdown with the Hub's metadata block.

    Raises:
        ValueError: training.json or conversion.json is not as this package writes it.
    """
    task, example = TASKS[type(model).__name__][1:]
    template = files("m2bert.hub").joinpath("templates/model_card.md").read_text(encoding="utf-8")
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False, undefined=StrictUndefined
    )
    environment.filters |= {"points": points, "short": lambda digest: str(digest)[:SHOWN_DIGITS], "fenced": fenced}
    environment.filters |= {"cell": cell, "literal": repr}
    try:
        return environment.from_string(template).render(
            metadata=format_yaml(_metadata(model, card).to_dict()).strip(),
            title=card.repository or f"M2-BERT, {card.max_tokens} tokens",
            config=model.config,
            card=card,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            task=task,
            example=example,
        )
    except (TemplateError, TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(
            f"the card cannot be made from training.json or conversion.json ({error}); remove or correct the record"
        ) from error


def points(score: float) -> str:
    """Return a score of 0 to 1 as points."""
    return f"{100 * score:.1f}"


def cell(text) -> str:
    """Return foreign text for a line of Markdown: one line, with nothing that Markdown or HTML reads as its own."""
    return re.sub(r"([\\`|<>\[\]])", r"\\\1", shown(" ".join(str(text).split())))


def fenced(value) -> str:
    """Return a value as a code block of YAML, which nothing in it can end."""
    text = format_yaml(value).strip()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}yaml\n{text}\n{fence}"


def _metadata(model: PreTrainedModel, card: Card) -> ModelCardData:
    library, task, _ = TASKS[type(model).__name__]
    optional = {
        "license": card.license,
        "language": card.about.language,
        "datasets": [data.hub for data in card.about.data if data.hub],
        "base_model": card.conversion.get("source") if card.conversion.get("revision") else None,
    }
    if card.scores.own:
        name = (card.repository or f"m2bert-{card.max_tokens}").split("/")[-1]
        optional |= {"model_name": name, "eval_results": model_index(card.scores)}
    return ModelCardData(
        library_name=library, pipeline_tag=task, tags=TAGS, **{name: value for name, value in optional.items() if value}
    )
