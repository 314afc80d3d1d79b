"""Write the files by which sentence-transformers reads a model folder, and read them back from its checkpoints.

The older format is written, which every version 6 reads. `weighted_mean` is taken from the model's own pooler_output,
so that its weights exist once (`encode(output_value="token_embeddings")` is then not available); the other poolings are
sentence-transformers' Pooling, with its Dense on top for `cls_tanh` and `mean_tanh`. A masked-LM model has no pooler:
plain `cls` or `mean`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict
from safetensors.torch import save_file
from transformers import PreTrainedModel

from m2bert.model_files import Module, SentenceConfig, TokenizerConfig, TransformerSettings, read_modules
from m2bert.schema import FOREIGN, Schema

from .checkpoint import check_finite, inside, open_weights, read_settings

STORED = ("prompts", "default_prompt_name", "similarity_fn_name")
TANH = "torch.nn.modules.activation.Tanh"


class PoolingSettings(Schema):
    """config.json of a Pooling: a flag `pooling_mode_...` for each mode (older), or their names (newer)."""

    model_config = ConfigDict(extra="allow")

    pooling_mode: str | list[str] | None = None
    include_prompt: Literal[True] = True  # an export cannot leave prompts out

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


class CasedSettings(TransformerSettings):
    """sentence_bert_config.json. An export leaves case to the tokenizer."""

    do_lower_case: Literal[False] | None = None


class WholeSettings(SentenceConfig):
    """config_sentence_transformers.json. An export keeps all numbers of a vector; whoever loads it may cut them."""

    truncate_dim: None = None


@dataclass
class SentenceSettings:
    """Settings that sentence-transformers adds to a model: prompts, a similarity, a shorter maximum length."""

    prompts: dict[str, str] = field(default_factory=lambda: {"query": "", "document": ""})
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"
    max_tokens: int | None = None


def layout(model: PreTrainedModel) -> list[str]:
    """Return the modules on top of the Transformer: names, and what distinguishes a module from others of its name."""
    pooling, pooler = model.config.pooling, model.base_model.pooler
    if pooler is not None and pooling == "weighted_mean":
        return ["Normalize"]
    tanh = pooler is not None and pooling.endswith("_tanh")
    dense = [_describe_dense(pooler.dense.state_dict(prefix="linear."), TANH)] if tanh else []
    return [f"Pooling by {'cls' if pooling.startswith('cls') else 'mean'}", *dense, "Normalize"]


def write_sentence_files(model: PreTrainedModel, settings: SentenceSettings, folder: Path):
    """Write modules.json and what it names; the vectors are `pooler_output`, L2-normalized."""
    config, names = model.config, [name.split()[0] for name in layout(model)]
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
    dense: dict[str, torch.Tensor] = {}
    found = [_describe(module, path, dense) for module in read_modules(path / "modules.json")]
    if found != (wanted := ["Transformer", *layout(model)]):
        raise ValueError(
            f"checkpoint {path} has the sentence-transformers modules {', '.join(found)}, but "
            f"pooling={model.config.pooling!r} is exported as {', '.join(wanted)}; make `pooling` in its config.json "
            "and the modules agree, or publish that checkpoint as it is"
        )
    if dense:
        model.base_model.pooler.dense.load_state_dict(dense)
    longest = model.config.max_position_embeddings  # sentence-transformers takes the least of three
    if (file := path / "sentence_bert_config.json").is_file():
        longest = min(longest, read_settings(CasedSettings, file).max_seq_length or longest)
    if (file := path / "tokenizer_config.json").is_file():
        longest = min(longest, read_settings(TokenizerConfig, file).model_max_length or longest)
    stored = read_settings(WholeSettings, path / "config_sentence_transformers.json")
    known = {name: getattr(stored, name) for name in STORED if getattr(stored, name)}
    if stored.prompts:
        known["prompts"] = {name: prompt or "" for name, prompt in stored.prompts.items()}
    return SentenceSettings(**known, max_tokens=longest)


def _describe(module: Module, folder: Path, dense: dict[str, torch.Tensor]) -> str:
    """Return a module of a checkpoint as `layout` has it. Of a Dense, add the tensors to `dense`."""
    kind = module.type.rsplit(".", 1)[-1]
    if kind == "Transformer" and module.path:
        return f"{kind} in {module.path}"
    config, file = (inside(folder, Path(module.path, name), True) for name in ("config.json", "model.safetensors"))
    if kind == "Pooling":
        return f"{kind} by {read_settings(PoolingSettings, config).modes}"
    if kind == "Dense":
        settings = read_settings(DenseSettings, config)
        with open_weights(file) as weights:
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
        check_finite(tensors, str(file))
        dense |= {name.removeprefix("linear."): tensor for name, tensor in tensors.items()}
        return _describe_dense(tensors, settings.activation_function)
    return kind


def _describe_dense(tensors: Mapping[str, torch.Tensor], activation: str) -> str:
    shapes = [f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())]
    return f"Dense ({', '.join(shapes)}, {activation})"


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
