"""Load checkpoints with every tensor accounted for."""

import json
import logging
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

import modeling_m2bert  # noqa: F401  (registers m2bert with the Auto classes)

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
AUTO_CLASSES = {
    "M2BertModel": AutoModel,
    "M2BertForMaskedLM": AutoModelForMaskedLM,
    "M2BertForSequenceClassification": AutoModelForSequenceClassification,
}


def load_checkpoint(model_dir: str | Path) -> PreTrainedModel:
    """Load a checkpoint folder with the class it was saved from, every tensor accounted for. Of an adapter folder
    (peft), the merged model.

    Raises:
        ValueError: no such folder, not an M2-BERT, or tensors that are missing, unexpected or of another shape.
    """
    path = Path(model_dir)
    if (path / ADAPTER_CONFIG).is_file():
        return load_merged(path)
    architecture = (read_config(path).get("architectures") or ["M2BertModel"])[0]
    if architecture not in AUTO_CLASSES:
        raise ValueError(f"checkpoint {path} is of class {architecture}; expected one of {', '.join(AUTO_CLASSES)}")
    model, _ = load_strictly(AUTO_CLASSES[architecture], path)
    unexpected = [key for key in tensor_names(path) if key not in model.state_dict()]
    if unexpected:
        raise ValueError(
            f"checkpoint {path} does not fit its config.json (unexpected: {', '.join(sorted(unexpected))})"
        )
    return model.eval()


def load_merged(path: Path) -> PreTrainedModel:
    """The base model of an adapter folder, with the adapter merged into its weights.

    Raises:
        ValueError: peft is not installed, the base is not here or not the one that was adapted, or tensors are missing
            or unexpected.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise ValueError(f"{path} holds an adapter of peft, which is not installed: pip install peft") from error
    settings = read_json(path / ADAPTER_CONFIG)
    base = Path(settings.get("base_model_name_or_path") or "")
    if not (base / "config.json").is_file():
        raise ValueError(
            f"adapter {path} changes the model {str(base)!r}, which is no model folder here; write where it is as "
            f"base_model_name_or_path into {path / ADAPTER_CONFIG}"
        )
    architecture = (settings.get("auto_mapping") or {}).get("base_model_class", "M2BertModel")
    model, missing = load_strictly(AUTO_CLASSES[architecture], base, may_miss=("pooler.",))
    adapted = PeftModel.from_pretrained(model, str(path))
    found, expected = tensor_names(path), set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    expected |= {f"base_model.model.{name}" for name in missing}
    if found != expected:
        names = ", ".join(sorted(found ^ expected))
        raise ValueError(f"adapter {path} does not fit its base {base} (missing or unexpected: {names})")
    return adapted.merge_and_unload(safe_merge=True).eval()


def load_strictly(
    auto_class, model_dir: str | Path, may_miss: tuple[str, ...] = (), **changes
) -> tuple[PreTrainedModel, set[str]]:
    """Load a checkpoint as `auto_class`, refusing tensors that are missing, unexpected or of another shape.

    Args:
        may_miss: prefixes of tensors that may be absent and are then newly initialised (a pooler on top of a
            masked-LM checkpoint).
        changes: fields of the configuration to change.

    Returns:
        The model, and the names of the tensors that the checkpoint did not hold.

    Raises:
        ValueError: see above; or no such folder, or another kind of model.
    """
    path = Path(model_dir)
    model_type = read_config(path).get("model_type")
    if model_type != "m2bert":
        raise ValueError(f"checkpoint {path} has model_type={model_type!r}; expected 'm2bert'")
    _check_weights_files(path)
    config = AutoConfig.from_pretrained(path, **changes)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of the tensors; what matters of it is raised below
    try:
        model, report = auto_class.from_pretrained(
            path, config=config, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except SafetensorError as error:
        raise ValueError(f"the weights of checkpoint {path} are damaged ({error}); copy or save them again") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = set(report["missing_keys"])
    problems = {
        "missing": [key for key in missing if not key.startswith(may_miss)],
        "unexpected": report["unexpected_keys"],
        "of another shape": [key for key, *_ in report["mismatched_keys"]],
    }
    if any(problems.values()):
        text = "; ".join(f"{what}: {', '.join(sorted(keys))}" for what, keys in problems.items() if keys)
        raise ValueError(f"checkpoint {path} does not fit its configuration ({text})")
    return model, missing


def _check_weights_files(path: Path):
    """Raise ValueError unless the folder holds safetensors, and an index names none elsewhere."""
    if not (path / "model.safetensors").is_file() and not (path / "model.safetensors.index.json").is_file():
        raise ValueError(
            f"checkpoint {path} has no model.safetensors; save the model there again, or name the folder that has it "
            "(m2bert convert reads the research code's files)"
        )
    for index in path.glob("*.index.json"):
        shards = read_json(index).get("weight_map", {})
        if not isinstance(shards, dict):
            raise ValueError(f"{index} has a weight_map that is no JSON object; save the model there again")
        for shard in shards.values():
            inside(path, str(shard))


def inside(folder: Path, name: str) -> Path:
    """What a file of a folder names there. Raises ValueError if it lies elsewhere."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{folder} names {name!r}, which lies outside that folder; copy it there and name the copy")
    return folder / name


def read_config(path: Path) -> dict:
    """config.json of a checkpoint folder. Raises ValueError where there is none."""
    if not (path / "config.json").is_file():
        raise ValueError(f"checkpoint {path} has no config.json; name the folder of a saved model")
    return read_json(path / "config.json")


def read_json(path: Path) -> dict:
    """A JSON object. Raises ValueError naming the file where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; name the right file")
    return value


def tensor_names(path: Path) -> set[str]:
    """Names of all tensors in the safetensors files of a checkpoint folder."""
    names = set()
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
    return names


def load_tokenizer(model_dir: str | Path) -> PreTrainedTokenizerBase | None:
    """The checkpoint's tokenizer, or None (with a warning) where it has none."""
    path = Path(model_dir)
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        logger.warning("%s has no tokenizer; the folder is written without one", path)
        return None
    return AutoTokenizer.from_pretrained(path)
