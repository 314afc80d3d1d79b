"""The README.md card of a model folder: a template, filled from the model."""

from importlib.resources import files

from huggingface_hub import ModelCardData
from jinja2 import Environment
from transformers import PreTrainedModel


def render_card(model: PreTrainedModel, card_text: str = "") -> str:
    """Markdown with the Hub's metadata block. `card_text` is Markdown about this very model (data, scores, limits)."""
    masked_lm = type(model).__name__.endswith("ForMaskedLM")
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers" if masked_lm else "sentence-transformers",
        pipeline_tag="fill-mask" if masked_lm else "sentence-similarity",
        tags=["m2bert", "monarch-mixer", "long-context", "retrieval", "feature-extraction", "custom_code"],
    )
    template = files("m2bert_hub").joinpath("templates/model_card.md").read_text(encoding="utf-8")
    environment = Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(template).render(
        metadata=metadata.to_yaml(),
        title=f"M2-BERT, {model.config.max_position_embeddings} tokens",
        config=model.config,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        card_text=card_text,
    )
