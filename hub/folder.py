"""The one writer of model folders: everything a Hub repository of M2-BERT holds, whole or not at all."""

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .model_card import render_card

REQUIREMENTS = "transformers>=5.17,<6\ntorch>=2.11\nsentence-transformers>=6\n"
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}


def write_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    prompts: dict[str, str] | None = None,
    card_text: str = "",
) -> Path:
    """Write a complete, self-contained Hub folder: safetensors, configuration, code, tokenizer, sentence-transformers
    files, requirements.txt and a README.md card.

    The folder loads with `AutoModel.from_pretrained(dir, trust_remote_code=True)` and
    `SentenceTransformer(dir, trust_remote_code=True)` where this package is not installed. It is assembled beside
    its destination and moved there in one step.

    Args:
        model: any M2-BERT class.
        tokenizer: saved with the model's maximum length and right padding; None leaves it out.
        output_dir: the folder to make.
        overwrite: replace a folder that exists and is not empty.
        prompts: texts that sentence-transformers puts before a "query" and a "document"; none by default.
        card_text: Markdown about this very model, for the card.

    Raises:
        ValueError: output_dir is a file, or is not empty and overwrite is False, or the tokenizer has ids outside
            the vocabulary.
    """
    output = Path(output_dir)
    check_output(output, overwrite)
    check_tokenizer(tokenizer, model.config.vocab_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        new = Path(scratch) / "new"
        model.save_pretrained(new)
        _copy_code(model, new)
        if tokenizer is not None:
            _save_tokenizer(tokenizer, model.config, new)
        _write_sentence_transformers_files(model, prompts or {"query": "", "document": ""}, new)
        (new / "requirements.txt").write_text(REQUIREMENTS)
        (new / "README.md").write_text(render_card(model, card_text), encoding="utf-8")
        new.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            output.rename(Path(scratch) / "old")
        new.rename(output)
    return output


def check_output(output: Path, overwrite: bool):
    """Raise ValueError unless a folder may be written at `output`."""
    if output.is_file():
        raise ValueError(f"output {output} is a file; name a folder")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ValueError(
            f"output {output} exists and is not empty; name another folder, or pass --overwrite to replace it"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase | None, vocab_size: int):
    """Raise ValueError if the tokenizer can give an id that the model has no embedding for."""
    largest = max(tokenizer.get_vocab().values()) if tokenizer is not None else 0
    if largest >= vocab_size:
        raise ValueError(
            f"tokenizer gives ids up to {largest} but the model has vocab_size={vocab_size}; "
            "use the tokenizer it was trained with, or resize_token_embeddings"
        )


def _copy_code(model: PreTrainedModel, folder: Path):
    """Every module that stands beside the model's own, byte for byte."""
    source = Path(sys.modules[type(model).__module__].__file__).parent
    for path in sorted(source.glob("*.py")):
        if path.name != "__init__.py":
            shutil.copyfile(path, folder / path.name)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, config, folder: Path):
    previous = tokenizer.model_max_length, tokenizer.padding_side
    tokenizer.model_max_length, tokenizer.padding_side = config.max_position_embeddings, "right"
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length, tokenizer.padding_side = previous


def _write_sentence_transformers_files(model: PreTrainedModel, prompts: dict[str, str], folder: Path):
    """modules.json and what it names. Same vectors as `pooler_output`, L2-normalised.

    `weighted_mean` is taken from the model's own pooler_output, so that its weights exist once; the other poolings
    are sentence-transformers' Pooling, with its Dense (tanh) on top for `cls_tanh` and `mean_tanh`.
    """
    config = model.config
    transformer = {"max_seq_length": config.max_position_embeddings, "do_lower_case": False}
    modules = [TRANSFORMER]

    def add(kind: str, settings: dict | None = None) -> Path:
        index = len(modules)
        path = folder / f"{index}_{kind}"
        modules.append(
            {"idx": index, "name": str(index), "path": path.name, "type": f"sentence_transformers.models.{kind}"}
        )
        path.mkdir()
        _write_json(path / "config.json", settings or {})
        return path

    if config.pooling == "weighted_mean":
        text = {"method": "forward", "method_output_name": "pooler_output"}
        transformer |= {"modality_config": {"text": text}, "module_output_name": "sentence_embedding"}
    else:
        cls = config.pooling.startswith("cls")
        modes = {"pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": not cls, "include_prompt": True}
        add("Pooling", {"word_embedding_dimension": config.hidden_size} | modes)
        if config.pooling.endswith("_tanh"):
            _save_dense(model.base_model.pooler.dense, add("Dense", _dense_settings(config.hidden_size)))
    add("Normalize")
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", transformer)
    settings = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write_json(folder / "config_sentence_transformers.json", settings)


def _dense_settings(width: int) -> dict:
    tanh = "torch.nn.modules.activation.Tanh"
    return {"in_features": width, "out_features": width, "bias": True, "activation_function": tanh}


def _save_dense(dense, folder: Path):
    tensors = {"linear.weight": dense.weight.detach().contiguous(), "linear.bias": dense.bias.detach()}
    save_file(tensors, folder / "model.safetensors")


def _write_json(path: Path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
