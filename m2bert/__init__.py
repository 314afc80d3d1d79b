"""M2-BERT: encoders of long documents without attention."""

from importlib.metadata import version

__version__ = version("m2bert")
_TASKS = ("MaskedLM", "MultipleChoice", "QuestionAnswering", "SequenceClassification", "TokenClassification")
_MODEL = {"M2BertConfig", "M2BertModel", *(f"M2BertFor{task}" for task in _TASKS)}
__all__ = ["__version__", *sorted(_MODEL)]


def __getattr__(name: str):
    """Return a class of the model. It is imported at its first use, because it imports torch."""
    if name in _MODEL:
        import modeling_m2bert

        return getattr(modeling_m2bert, name)
    raise AttributeError(f"module 'm2bert' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
