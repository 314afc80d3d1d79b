"""The README.md card of a model folder: a template, filled from the model, its records and its scores."""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import PurePath

import yaml
from huggingface_hub import ModelCardData
from jinja2 import Environment
from transformers import PreTrainedModel

from .about import About
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
        prompts: what is put before queries and documents.
    """

    repository: str | None = None
    about: About = field(default_factory=About)
    scores: Scores = field(default_factory=Scores)
    training: dict = field(default_factory=dict)
    conversion: dict = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)

    @property
    def license(self) -> str | None:
        """Of the weights: as stated, else as the source of a conversion states it."""
        return self.about.license or self.conversion.get("license")


def render_card(model: PreTrainedModel, card: Card | None = None, has_handler: bool = False) -> str:
    """Markdown with the Hub's metadata block."""
    card = card or Card()
    task, example = TASKS[type(model).__name__][1:]
    template = files("m2bert_hub").joinpath("templates/model_card.md").read_text(encoding="utf-8")
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {"points": points, "short": lambda digest: str(digest)[:SHOWN_DIGITS], "yaml": _yaml}
    return environment.from_string(template).render(
        metadata=_metadata(model, card).to_yaml(),
        title=card.repository or f"M2-BERT, {model.config.max_position_embeddings} tokens",
        config=model.config,
        card=card,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        padding="True" if model.config.padding == "masked" else '"max_length"',
        task=task,
        example=example,
        has_handler=has_handler,
        settings=_without_paths(card.training.get("config", {})),
    )


def points(score: float) -> str:
    """A score of 0 to 1 as points."""
    return f"{100 * score:.1f}"


def _metadata(model: PreTrainedModel, card: Card) -> ModelCardData:
    library, task, _ = TASKS[type(model).__name__]
    optional = {
        "license": card.license,
        "language": card.about.language,
        "datasets": [data.hub for data in card.about.data if data.hub],
        "base_model": card.conversion.get("source") if card.conversion.get("revision") else None,
    }
    if card.scores.own:
        name = (card.repository or f"m2bert-{model.config.max_position_embeddings}").split("/")[-1]
        optional |= {"model_name": name, "eval_results": model_index(card.scores)}
    return ModelCardData(
        library_name=library, pipeline_tag=task, tags=TAGS, **{name: value for name, value in optional.items() if value}
    )


def _without_paths(value):
    """The settings of a run, with no more than the last part of a path: where its maker keeps files is nobody's."""
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value


def _yaml(value) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip()
