"""From a checkpoint (of training, or saved by sentence-transformers) to a complete Hub folder."""

import json
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import modeling_m2bert  # noqa: F401  (registers m2bert with the Auto classes)

from .folder import check_output, write_folder

logger = logging.getLogger(__name__)

AUTO_CLASSES = {
    "M2BertModel": AutoModel,
    "M2BertForMaskedLM": AutoModelForMaskedLM,
    "M2BertForSequenceClassification": AutoModelForSequenceClassification,
}


def load_checkpoint(model_dir: str | Path) -> PreTrainedModel:
    """Load a checkpoint folder with the class it was saved from, every tensor accounted for.

    Raises:
        ValueError: no such folder, not an M2-BERT, or tensors that are missing, unexpected or of another shape.
    """
    path = Path(model_dir)
    if not (path / "config.json").is_file():
        raise ValueError(f"checkpoint {path} has no config.json; name the folder of a saved model")
    config = AutoConfig.from_pretrained(path)
    if config.model_type != "m2bert":
        raise ValueError(f"checkpoint {path} has model_type={config.model_type!r}; only m2bert can be exported")
    architecture = (config.architectures or ["M2BertModel"])[0]
    if architecture not in AUTO_CLASSES:
        raise ValueError(
            f"checkpoint {path} names architecture {architecture}; expected one of {', '.join(AUTO_CLASSES)}"
        )
    auto_class = AUTO_CLASSES[architecture]
    model, report = auto_class.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True)
    problems = {what: report[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched")}
    if any(problems.values()):
        text = "; ".join(f"{what}: {', '.join(map(str, sorted(keys)))}" for what, keys in problems.items() if keys)
        raise ValueError(
            f"checkpoint {path} does not fit its config.json ({text}); save it again from a complete model"
        )
    return model.eval()


def load_tokenizer(model_dir: str | Path) -> PreTrainedTokenizerBase | None:
    """The checkpoint's tokenizer, or None (with a warning) where it has none."""
    path = Path(model_dir)
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        logger.warning("checkpoint %s has no tokenizer; the folder is written without one", path)
        return None
    return AutoTokenizer.from_pretrained(path)


def export_checkpoint(model_dir: str | Path, output_dir: str | Path, *, overwrite: bool = False) -> Path:
    """Write the Hub folder of a checkpoint; see `write_folder`. Prompts, and a Dense layer that sentence-transformers
    has trained on top of the model, are taken over from the checkpoint."""
    check_output(Path(output_dir), overwrite)
    model = load_checkpoint(model_dir)
    _take_over_dense(model, Path(model_dir))
    prompts = None
    settings = Path(model_dir) / "config_sentence_transformers.json"
    if settings.is_file():
        prompts = json.loads(settings.read_text()).get("prompts")
    return write_folder(model, load_tokenizer(model_dir), output_dir, overwrite=overwrite, prompts=prompts)


def _take_over_dense(model: PreTrainedModel, path: Path):
    """Training with sentence-transformers changes its Dense module, not the model's own pooler: bring it back."""
    if not model.config.pooling.endswith("_tanh") or not (path / "modules.json").is_file():
        return
    for module in json.loads((path / "modules.json").read_text()):
        if module["type"].rsplit(".", 1)[-1] == "Dense":
            dense = load_file(path / module["path"] / "model.safetensors")
            pooler = model.base_model.pooler.dense
            changed = not torch.equal(dense["linear.weight"].to(pooler.weight), pooler.weight)
            pooler.load_state_dict({"weight": dense["linear.weight"], "bias": dense["linear.bias"]})
            if changed:
                logger.info("the pooler takes over the weights of %s", module["path"])
