"""Load checkpoints with every tensor accounted for. A checkpoint may be foreign: none of its code is run."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
import transformers
from pydantic import Field
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from m2bert.files import read_json
from m2bert.model_files import AdapterConfig, AutoMapping, ModelConfig, WeightsIndex, check_model_files
from m2bert.schema import S, checked
from m2bert.terminal import one_line
from modeling_m2bert import M2BertConfig

logger = logging.getLogger(__name__)

ADAPTER_CONFIG, TOKENIZER_CONFIG = "adapter_config.json", "tokenizer_config.json"
AUTO_CLASSES = {  # by the name of ours
    name.partition(".")[2]: getattr(transformers, auto)
    for auto, name in M2BertConfig().auto_map.items()
    if auto != "AutoConfig"
}
LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")
Architecture = Literal[tuple(AUTO_CLASSES)]


class OwnConfig(ModelConfig):
    """config.json of an M2-BERT: what transformers reads of it; M2BertConfig checks sizes and switches."""

    model_type: Literal["m2bert"]
    architectures: list[Architecture] | None = None
    num_hidden_layers: int = 12
    dtype: str | None = None
    torch_dtype: str | None = None


class OwnMapping(AutoMapping):
    base_model_class: Architecture = "M2BertModel"


class OwnAdapter(AdapterConfig):
    """adapter_config.json of an adapter of peft whose base is an M2-BERT in a folder."""

    base_model_name_or_path: str = Field(min_length=1)
    auto_mapping: OwnMapping | None = None


def load_checkpoint(model_dir: str | Path) -> PreTrainedModel:
    """Load a checkpoint folder with the class it was saved from, and merge an adapter of peft. Raises ValueError as
    `load_strictly`, or if a link leads out of the folder."""
    path = Path(model_dir)
    check_links(path)
    if (path / ADAPTER_CONFIG).is_file():
        return load_merged(path)
    model, _ = load_strictly(auto_class_of(path), path)
    stored = tensor_shapes(path.glob("*.safetensors"))  # more than transformers looks at
    check_tensors(f"checkpoint {path}", unexpected=stored.keys() - model.state_dict().keys())
    return model.eval()


def load_merged(path: Path) -> PreTrainedModel:
    """Load the base model of an adapter folder, and merge the adapter into its weights."""
    settings = read_settings(OwnAdapter, path / ADAPTER_CONFIG)
    base = Path(settings.base_model_name_or_path)
    stored = tensor_shapes([path / "adapter_model.safetensors"])  # if it is missing, peft reads a pickle in its place
    auto_class = AUTO_CLASSES[(settings.auto_mapping or OwnMapping()).base_model_class]
    with foreign(f"adapter {path} cannot be merged with {base}, which its {ADAPTER_CONFIG} names"):
        check_links(base)
        model, missing = load_strictly(auto_class, base, may_miss=("pooler.",))
        from peft import PeftModel, get_peft_model_state_dict

        adapted = PeftModel.from_pretrained(model, str(path))
        expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        merged = adapted.merge_and_unload(safe_merge=True).eval()
    expected |= {f"base_model.model.{name}" for name in missing}
    check_tensors(f"adapter {path}", missing_or_unexpected=expected ^ stored.keys())
    check_finite(merged.state_dict(), f"adapter {path}")
    return merged


def auto_class_of(path: Path):
    """Return the Auto class of a checkpoint folder. Raises ValueError if it is none of ours."""
    return AUTO_CLASSES[(read_config(path).architectures or ["M2BertModel"])[0]]


def load_strictly(
    auto_class, model_dir: str | Path, may_miss: tuple[str, ...] = (), **changes
) -> tuple[PreTrainedModel, set[str]]:
    """Load a checkpoint as `auto_class`, refusing tensors that are missing, unexpected, of another shape or not finite.

    Sizes are compared before anything is allocated. None of the checkpoint's code is run.

    Args:
        may_miss: prefixes of tensors that may be absent and are then newly initialized (a pooler on top of a
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
        with foreign(f"checkpoint {path} cannot be loaded"):
            model, report = auto_class.from_pretrained(
                path, config=config, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = set(report["missing_keys"])
    lost = {name for name in missing if not name.startswith(may_miss)}
    check_tensors(f"checkpoint {path}", missing=lost, unexpected=report["unexpected_keys"])
    check_finite(model.state_dict(), f"checkpoint {path}")
    return model, missing


def check_fit(auto_class, path: Path, may_miss: tuple[str, ...] = (), **changes) -> PreTrainedConfig:
    """Return the configuration of a checkpoint, compared with the headers of its weights. No tensor is allocated or
    read. Raises ValueError as `load_strictly`, whose arguments these are."""
    stored = read_config(path)
    for index in path.glob("*.index.json"):
        for shard in read_settings(WeightsIndex, index).weight_map.values():
            inside(path, shard)
    shapes = tensor_shapes(path.glob("*.safetensors"))
    layers = max((int(match[1]) + 1 for name in shapes if (match := LAYER.match(name))), default=0)
    if stored.num_hidden_layers > layers:  # a model of very many layers takes long to describe
        lost = f"layers from {layers} on (num_hidden_layers={stored.num_hidden_layers}) in files of safetensors"
        check_tensors(f"checkpoint {path}", missing=[lost])
    with foreign(f"{path / 'config.json'} describes no M2-BERT"):  # also sizes beyond those of any tensor
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **changes)
        with torch.device("meta"):
            model = auto_class.from_config(config, trust_remote_code=False)
    missing, other = set(), set()
    for name, tensor in model.state_dict().items():
        names = (name, f"model.{name}", name.removeprefix("model."))  # of a class with or without a head
        found = next((shapes[each] for each in names if each in shapes), None)
        if found is None and not name.startswith(may_miss) and name not in model.all_tied_weights_keys:
            missing.add(name)
        elif found not in (None, tuple(tensor.shape)):
            other.add(name)
    check_tensors(f"checkpoint {path}", missing=missing, of_another_shape=other)
    return config


def check_tensors(where: str, **problems: Iterable[str]) -> None:
    """Raise ValueError naming the tensors, by what is wrong with them, if there are any."""
    if any(problems.values()):
        named = {what.replace("_", " "): ", ".join(sorted(names)) for what, names in problems.items() if names}
        raise ValueError(f"{where} has wrong tensors ({'; '.join(map(': '.join, named.items()))})")


def check_finite(tensors: Mapping[str, torch.Tensor], where: str):
    """Raise ValueError naming the tensors, and `where` they are, that hold NaN or an infinite number."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    narrow = {name: tensor.float() for name, tensor in floating.items() if tensor.itemsize == 1}  # float8: no isfinite
    check_tensors(where, not_finite=[n for n, tensor in (floating | narrow).items() if not tensor.isfinite().all()])


def check_links(folder: Path):
    """Raise ValueError if anything in a model folder, or in those of sentence-transformers' modules, is a link out of
    it: its content would be handed on. Code is not: an export writes its own."""
    for path in sorted([*folder.glob("*"), *folder.glob("[0-9]*_*/*")]):
        if path.suffix != ".py":
            inside(folder, path.relative_to(folder), links=True)


def inside(folder: Path, name: str | Path, links: bool = False) -> Path:
    """Return the path of what a file of a folder names there. Raises ValueError if it lies elsewhere, with `links` also
    if links lead elsewhere."""
    path, follow = folder / name, os.path.realpath if links else os.path.abspath
    if not Path(follow(path)).is_relative_to(follow(folder)):
        raise ValueError(f"{path} lies, or is a link to what lies, outside {folder}; put a copy in it (cp -rL)")
    return path


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Raise what fails in the block as a ValueError that begins with `what`. Foreign files can fail in any way."""
    try:
        yield
    except Exception as error:
        said = "it needs code of its own, which is not run" if "trust_remote_code" in str(error) else one_line(error)
        raise ValueError(f"{what} ({type(error).__name__}: {said})") from error


def read_settings(schema: type[S], file: Path) -> S:
    """Read a JSON file that `schema` describes. Raises ValueError naming file, key and value."""
    return checked(schema, read_json(file), str(file))


def read_config(path: Path) -> OwnConfig:
    """Read config.json of a checkpoint folder. Raises ValueError if it is not of an M2-BERT."""
    return read_settings(OwnConfig, path / "config.json")


@contextmanager
def open_weights(file: Path) -> Iterator[safe_open]:
    """Open a file of safetensors, whose header is compared with its length. Raises ValueError if it is damaged."""
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the weights {file} are damaged or cut short ({error}); copy or save them again") from error


def tensor_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of all tensors in files of safetensors. Raises ValueError if one is damaged or missing."""
    shapes = {}
    for file in files:
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
    with foreign(f"the tokenizer of {path} cannot be read"):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
