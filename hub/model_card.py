"""The README.md card of a model folder: a template, filled from the model."""

from importlib.resources import files

from huggingface_hub import ModelCardData
from jinja2 import Environment
from transformers import PreTrainedModel

TASKS = {  # class: library, task, an input to try
    "M2BertModel": ("sentence-transformers", "sentence-similarity", ""),
    "M2BertForMaskedLM": ("transformers", "fill-mask", "The committee approved the [MASK]."),
    "M2BertForSequenceClassification": ("transformers", "text-classification", "The committee approved the budget."),
}
TAGS = ["m2bert", "monarch-mixer", "long-context", "retrieval", "feature-extraction", "custom_code"]


def render_card(model: PreTrainedModel, card_text: str = "") -> str:
    """Markdown with the Hub's metadata block. `card_text` is Markdown about this very model (data, scores, limits)."""
    library, task, example = TASKS[type(model).__name__]
    metadata = ModelCardData(license="apache-2.0", library_name=library, pipeline_tag=task, tags=TAGS)
    template = files("m2bert_hub").joinpath("templates/model_card.md").read_text(encoding="utf-8")
    environment = Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(template).render(
        metadata=metadata.to_yaml(),
        title=f"M2-BERT, {model.config.max_position_embeddings} tokens",
        config=model.config,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        padding="True" if model.config.padding == "masked" else '"max_length"',
        task=task,
        example=example,
        card_text=card_text,
    )
