"""Write the files by which sentence-transformers reads a model folder, and read them back from its checkpoints.

The older format is written, which every version 6 reads. `weighted_mean` is taken from the model's own pooler_output,
so that its weights exist once (`encode(output_value="token_embeddings")` is then not available); the other poolings are
sentence-transformers' Pooling, with its Dense on top for `cls_tanh` and `mean_tanh`. A masked-LM model has no pooler:
plain `cls` or `mean`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from safetensors.torch import save_file
from transformers import PreTrainedModel

from m2bert.files import read_json
from m2bert.model_files import SentenceConfig, TokenizerConfig, TransformerSettings, read_modules
from m2bert.schema import FOREIGN, Schema, checked

from .checkpoint import check_finite, check_link, inside, open_weights

STORED = ("prompts", "default_prompt_name", "similarity_fn_name")
TANH = "torch.nn.modules.activation.Tanh"


class PoolingSettings(Schema):
    """config.json of a Pooling: a flag `pooling_mode_...` for each mode (older), or their names (newer)."""

    model_config = ConfigDict(extra="allow")

    pooling_mode: str | list[str] | None = None
    include_prompt: bool = True

    @property
    def modes(self) -> str:
        """The poolings whose vectors are concatenated, joined by "+"."""
        flags = [name.removeprefix("pooling_mode_").split("_token")[0] for name, value in self.model_extra.items()
                 if name.startswith("pooling_mode_") and value]  # fmt: skip
        named = [self.pooling_mode] if isinstance(self.pooling_mode, str) else self.pooling_mode
        return "+".join(named or flags or ["mean"])


class DenseSettings(Schema):
    """config.json of a Dense."""

    model_config = FOREIGN

    activation_function: str = TANH


@dataclass
class SentenceSettings:
    """Settings that sentence-transformers adds to a model: prompts, a similarity, a shorter maximum length."""

    prompts: dict[str, str] = field(default_factory=lambda: {"query": "", "document": ""})
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"
    max_tokens: int | None = None


def layout(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules on top of the Transformer."""
    pooling, pooler = model.config.pooling, model.base_model.pooler
    if pooler is not None and pooling == "weighted_mean":
        return ["Normalize"]
    dense = ["Dense"] if pooler is not None and pooling.endswith("_tanh") else []
    return ["Pooling", *dense, "Normalize"]


def write_sentence_files(model: PreTrainedModel, settings: SentenceSettings, folder: Path):
    """Write modules.json and what it names; the vectors are `pooler_output`, L2-normalized."""
    config, names = model.config, layout(model)
    width = config.hidden_size
    transformer = {"max_seq_length": settings.max_tokens or config.max_position_embeddings, "do_lower_case": False}
    if "Pooling" not in names:
        text = {"method": "forward", "method_output_name": "pooler_output"}
        transformer |= {"modality_config": {"text": text}, "module_output_name": "sentence_embedding"}
    if config.padding == "visible":  # batch mates would change vectors: every text is padded alike, as in the original
        transformer["processing_kwargs"] = {"text": {"padding": "max_length"}}
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, name in enumerate(names, start=1):
        path, content = folder / f"{index}_{name}", {}
        path.mkdir()
        kind = f"sentence_transformers.models.{name}"
        modules.append({"idx": index, "name": str(index), "path": path.name, "type": kind})
        if name == "Pooling":
            cls = config.pooling.startswith("cls")
            modes = {"pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": not cls, "include_prompt": True}
            content = {"word_embedding_dimension": width} | modes
        elif name == "Dense":
            content = {"in_features": width, "out_features": width, "bias": True, "activation_function": TANH}
            dense = model.base_model.pooler.dense
            tensors = {"linear.weight": dense.weight.detach().contiguous(), "linear.bias": dense.bias.detach()}
            save_file(tensors, path / "model.safetensors")
        write_json(path / "config.json", content)
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", transformer)
    write_json(folder / "config_sentence_transformers.json", {name: getattr(settings, name) for name in STORED})


def read_sentence_files(model: PreTrainedModel, path: Path) -> SentenceSettings:
    """Read settings of a checkpoint of sentence-transformers. Its trained Dense goes back into the model's pooler.

    Raises:
        ValueError: a file is not of its form, or the checkpoint has other modules on top of the model than an export
            would write, so that the exported vectors would be others.
    """
    if not (path / "modules.json").is_file():
        return SentenceSettings()
    modules = read_modules(path / "modules.json")
    names = [module.type.rsplit(".", 1)[-1] for module in modules]
    if names != ["Transformer", *layout(model)] or modules[0].path:
        raise ValueError(
            f"checkpoint {path} has the sentence-transformers modules {', '.join(names)} (the first in "
            f"{modules[0].path!r}), but pooling={model.config.pooling!r} is exported as Transformer (in ''), "
            f"{', '.join(layout(model))}; change `pooling` in its config.json, or publish that checkpoint as it is"
        )
    for name, module in zip(names[1:], modules[1:], strict=True):
        place = inside(path, module.path)
        file, weights = place / "config.json", place / "model.safetensors"
        check_link(file, path)
        check_link(weights, path)
        if name == "Pooling":
            settings = checked(PoolingSettings, read_json(file), str(file))
            wanted = "cls" if model.config.pooling.startswith("cls") else "mean"
            if settings.modes != wanted or not settings.include_prompt:
                raise ValueError(
                    f"{file} pools by {settings.modes!r} with include_prompt={settings.include_prompt}, but "
                    f"pooling={model.config.pooling!r} of the model is exported as {wanted!r} with "
                    "include_prompt=True; make the two agree, or publish that checkpoint as it is"
                )
        elif name == "Dense":
            _take_over_dense(checked(DenseSettings, read_json(file), str(file)), weights, model)
    longest = model.config.max_position_embeddings  # sentence-transformers takes the least of three
    if (file := path / "sentence_bert_config.json").is_file():
        settings = checked(TransformerSettings, read_json(file), str(file))
        if settings.do_lower_case:
            raise ValueError(f"{file} has do_lower_case=true, which an export cannot; set it in the tokenizer instead")
        longest = min(longest, settings.max_seq_length or longest)
    if (file := path / "tokenizer_config.json").is_file():
        longest = min(longest, checked(TokenizerConfig, read_json(file), str(file)).model_max_length or longest)
    file = path / "config_sentence_transformers.json"
    stored = checked(SentenceConfig, read_json(file), str(file))
    known = {name: getattr(stored, name) for name in STORED if getattr(stored, name)}
    if stored.prompts:
        known["prompts"] = {name: prompt or "" for name, prompt in stored.prompts.items()}
    return SentenceSettings(**known, max_tokens=longest)


def _take_over_dense(settings: DenseSettings, file: Path, model: PreTrainedModel) -> None:
    """Copy a Dense, which training with sentence-transformers changes, into the model's own pooler."""
    pooler = model.base_model.pooler.dense
    with open_weights(file) as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    check_finite(tensors, str(file))
    shapes = {"linear.weight": pooler.weight.shape, "linear.bias": pooler.bias.shape}
    if {key: tensor.shape for key, tensor in tensors.items()} != shapes or settings.activation_function != TANH:
        raise ValueError(
            f"{file} is a Dense of another shape or activation than the model's pooler ({pooler.in_features} to "
            f"{pooler.out_features}, bias, tanh); publish that checkpoint as it is"
        )
    pooler.load_state_dict({"weight": tensors["linear.weight"], "bias": tensors["linear.bias"]})


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
