"""Load checkpoints with every tensor accounted for. A checkpoint may be foreign: none of its code is run."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

import modeling_m2bert  # noqa: F401  (registers m2bert with the Auto classes)
from m2bert.files import read_json
from m2bert.model_files import AdapterConfig, ModelConfig, WeightsIndex, check_model_files
from m2bert.schema import checked
from m2bert.terminal import one_line

logger = logging.getLogger(__name__)

ADAPTER_CONFIG, TOKENIZER_CONFIG = "adapter_config.json", "tokenizer_config.json"
AUTO_CLASSES = {
    "M2BertModel": AutoModel,
    "M2BertForMaskedLM": AutoModelForMaskedLM,
    "M2BertForSequenceClassification": AutoModelForSequenceClassification,
}
LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")


class OwnConfig(ModelConfig):
    """config.json of an M2-BERT: what transformers reads of it; M2BertConfig checks sizes and switches."""

    model_type: Literal["m2bert"]
    num_hidden_layers: int = 12
    dtype: str | None = None
    torch_dtype: str | None = None


def load_checkpoint(model_dir: str | Path) -> PreTrainedModel:
    """Load a checkpoint folder with the class it was saved from, every tensor accounted for. Merge an adapter of peft.

    Raises:
        ValueError: no such folder, not an M2-BERT, a link out of the folder, or tensors that are missing, unexpected,
            of another shape or not finite.
    """
    path = Path(model_dir)
    check_links(path)
    if (path / ADAPTER_CONFIG).is_file():
        return load_merged(path)
    model, _ = load_strictly(auto_class_of(path), path)
    check_names(path, unexpected=tensor_shapes(path).keys() - model.state_dict().keys())
    return model.eval()


def load_merged(path: Path) -> PreTrainedModel:
    """Load the base model of an adapter folder, and merge the adapter into its weights."""
    settings = checked(AdapterConfig, read_json(path / ADAPTER_CONFIG), str(path / ADAPTER_CONFIG))
    base = Path(settings.base_model_name_or_path or "")
    for file in (base / "config.json", path / "adapter_model.safetensors"):  # peft would read a pickle in its place
        if not file.is_file():
            raise ValueError(f"adapter {path} needs {file}; its {ADAPTER_CONFIG} names the base model's folder")
    check_links(base)
    architecture = settings.auto_mapping.base_model_class if settings.auto_mapping else "M2BertModel"
    model, missing = load_strictly(auto_class_of(path, architecture), base, may_miss=("pooler.",))
    try:
        from peft import PeftModel, get_peft_model_state_dict

        adapted = PeftModel.from_pretrained(model, str(path))
        expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        merged = adapted.merge_and_unload(safe_merge=True).eval()
    except Exception as error:  # foreign settings and weights can fail in any way
        raise ValueError(f"adapter {path} cannot be merged with {base} ({type(error).__name__}: {error})") from error
    expected |= {f"base_model.model.{name}" for name in missing}
    check_names(path, **{"missing or unexpected": expected ^ tensor_shapes(path).keys()})
    check_finite(merged.state_dict(), f"adapter {path}")
    return merged


def auto_class_of(path: Path, architecture: str | None = None):
    """Return the Auto class of a checkpoint folder, or of an architecture. Raises ValueError if it is none of ours."""
    architecture = architecture or (read_config(path).get("architectures") or ["M2BertModel"])[0]
    if architecture not in AUTO_CLASSES:
        raise ValueError(f"checkpoint {path} is of class {architecture}; expected one of {', '.join(AUTO_CLASSES)}")
    return AUTO_CLASSES[architecture]


def load_strictly(
    auto_class, model_dir: str | Path, may_miss: tuple[str, ...] = (), **changes
) -> tuple[PreTrainedModel, set[str]]:
    """Load a checkpoint as `auto_class`, refusing tensors that are missing, unexpected, of another shape or not finite.

    Sizes are compared before anything is allocated. None of the checkpoint's code is run.

    Args:
        may_miss: prefixes of tensors that may be absent and are then newly initialised (a pooler on top of a
            masked-LM checkpoint).
        changes: fields of the configuration to change.

    Returns:
        The model, and the names of the tensors that the checkpoint did not hold.
    """
    path = Path(model_dir)
    config = check_fit(auto_class, path, may_miss, **changes)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of the tensors; what matters of it is raised below
    try:
        model, report = auto_class.from_pretrained(
            path, config=config, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # foreign settings can fail in any way
        raise ValueError(f"checkpoint {path} cannot be loaded ({type(error).__name__}: {error})") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = set(report["missing_keys"])
    lost = {name for name in missing if not name.startswith(may_miss)}
    check_names(path, missing=lost, unexpected=report["unexpected_keys"])
    check_finite(model.state_dict(), f"checkpoint {path}")
    return model, missing


def check_fit(auto_class, path: Path, may_miss: tuple[str, ...] = (), **changes) -> PreTrainedConfig:
    """Return the configuration of a checkpoint, compared with the headers of its weights. No tensor is allocated or
    read. Raises ValueError as `load_strictly`, whose arguments these are."""
    stored = checked(OwnConfig, read_config(path), str(path / "config.json"))
    for index in path.glob("*.index.json"):
        for shard in checked(WeightsIndex, read_json(index), str(index)).weight_map.values():
            inside(path, shard)
    shapes = tensor_shapes(path)
    layers = max((int(match[1]) + 1 for name in shapes if (match := LAYER.match(name))), default=0)
    if stored.num_hidden_layers > layers:  # a model of very many layers takes long to describe
        raise ValueError(
            f"{path} has num_hidden_layers={stored.num_hidden_layers}, but its files of safetensors hold {layers} "
            "layers (m2bert convert reads the research code's files)"
        )
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **changes)
        with torch.device("meta"):
            model = auto_class.from_config(config, trust_remote_code=False)
    except Exception as error:  # foreign settings can fail in any way, and sizes can be beyond what a tensor can have
        raise ValueError(f"{path / 'config.json'} describes no M2-BERT ({one_line(error)}); correct it") from error
    missing, other = set(), set()
    for name, tensor in model.state_dict().items():
        names = (name, f"model.{name}", name.removeprefix("model."))  # of a class with or without a head
        found = next((shapes[each] for each in names if each in shapes), None)
        if found is None and not name.startswith(may_miss) and name not in model.all_tied_weights_keys:
            missing.add(name)
        elif found not in (None, tuple(tensor.shape)):
            other.add(name)
    check_names(path, missing=missing, **{"of another shape": other})
    return config


def check_names(path: Path, **problems: set[str]) -> None:
    """Raise ValueError naming the tensors, by what is wrong with them, if there are any."""
    if any(problems.values()):
        text = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in problems.items() if names)
        raise ValueError(f"checkpoint {path} does not fit its configuration ({text})")


def check_finite(tensors: Mapping[str, torch.Tensor], where: str):
    """Raise ValueError naming the tensors, and `where` they are, that hold NaN or an infinite number."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    narrow = {name: tensor.float() for name, tensor in floating.items() if tensor.itemsize == 1}  # float8: no isfinite
    bad = sorted(name for name, tensor in (floating | narrow).items() if not tensor.isfinite().all())
    if bad:
        raise ValueError(f"{where} holds weights that are not finite ({', '.join(bad)}); go back to whole ones")


def check_links(folder: Path):
    """Raise ValueError if anything in a model folder, or in those of sentence-transformers' modules, is a link out of
    it: its content would be handed on. Code is not: an export writes its own."""
    for path in sorted([*folder.glob("*"), *folder.glob("[0-9]*_*/*")]):
        if path.suffix != ".py":
            check_link(path, folder)


def check_link(path: Path, folder: Path):
    """Raise ValueError if links lead from a path in a folder out of it."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} is a link that leads out of the folder; put a copy in its place (cp -rL)")


def inside(folder: Path, name: str) -> Path:
    """Return the path of what a file of a folder names there. Raises ValueError if it lies elsewhere."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{folder} names {name!r}, which lies outside that folder; copy it there and name the copy")
    return folder / name


def read_config(path: Path) -> dict:
    """Read config.json of a checkpoint folder. Raises ValueError if there is none, or none of a model."""
    config = read_json(path / "config.json")
    checked(ModelConfig, config, str(path / "config.json"))
    return config


@contextmanager
def open_weights(file: Path) -> Iterator[safe_open]:
    """Open a file of safetensors, whose header is compared with its length. Raises ValueError if it is damaged."""
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the weights {file} are damaged or cut short ({error}); copy or save them again") from error


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of all tensors in safetensors files of a folder. Raises ValueError if one is damaged."""
    shapes = {}
    for file in path.glob("*.safetensors"):
        with open_weights(file) as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def load_tokenizer(model_dir: str | Path) -> PreTrainedTokenizerBase | None:
    """Load the checkpoint's tokenizer, or return None, with a warning, if it has none. None of its code is run."""
    path = Path(model_dir)
    if not any((path / name).is_file() for name in ("tokenizer.json", TOKENIZER_CONFIG, "vocab.txt")):
        logger.warning("%s has no tokenizer; the folder is written without one", path)
        return None
    check_model_files(path)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # a foreign file can fail in any way
        why = "it needs code of its own, which is not run" if "trust_remote_code" in str(error) else one_line(error)
        raise ValueError(f"the tokenizer of {path} cannot be read ({type(error).__name__}: {why})") from error
