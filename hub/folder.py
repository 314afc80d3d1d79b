"""The one writer of model folders: everything that a Hub repository of M2-BERT holds."""

import copy
import dataclasses
import shutil
import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from m2bert.files import read_json
from m2bert.schema import checked

from .card import KINDS, Card, public_record, render_card
from .checkpoint import AUTO_CLASSES, check_finite
from .outputs import check_apart, check_output, whole_folder  # noqa: F401  (also imported from here)
from .sentence_files import SentenceSettings, write_json, write_sentence_files

REQUIREMENTS = "transformers>=5.17,<6\ntorch>=2.11\nsentence-transformers>=6\n"
FOREIGN_CODE = {"auto_map", "custom_pipelines"}  # of whoever made the checkpoint; this folder names its own
HOW_IT_WAS_LOADED = {"is_local", "local_files_only"}  # of a tokenizer, which transformers writes among its settings


def write_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    state_dict: dict | None = None,
    **contents,
) -> Path:
    """Write a complete, self-contained Hub folder: safetensors, configuration, code, tokenizer, sentence-transformers
    files, requirements.txt and a README.md card; of an embedding model with a tokenizer, the handler.py of Inference
    Endpoints.

    The folder loads with `AutoModel.from_pretrained(dir, trust_remote_code=True)` and
    `SentenceTransformer(dir, trust_remote_code=True)` where this package is not installed. It comes whole or not at all
    (`whole_folder`).

    Args:
        model: any M2-BERT class.
        tokenizer: saved with the model's maximum length and right padding; None leaves it out.
        output_dir: the folder to make; links are followed.
        overwrite: replace a model folder that exists.
        state_dict: the whole weights, where the model holds only a shard of them.
        contents: settings, card and extra_files, see `fill_folder`.

    Raises:
        ValueError: the folder may not or cannot be written (`check_output`), the tokenizer has ids outside the
            vocabulary, or a weight is not finite.
    """
    output = check_output(output_dir, overwrite)
    check_tokenizer(tokenizer, model.config.vocab_size)
    model = model if state_dict is None else _unsharded(model, state_dict)
    with whole_folder(output, overwrite) as new:
        fill_folder(new, model, tokenizer, **contents)
    return output


def fill_folder(
    new: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    settings: SentenceSettings | None = None,
    card: Card | None = None,
    extra_files: dict[str, str] | None = None,
) -> None:
    """Write what `write_folder` promises into the empty folder of `whole_folder`.

    Args:
        settings: prompts and the like for sentence-transformers.
        card: what the card says in addition to what the model and the records among the extra files tell.
        extra_files: more text files, by name.

    Raises:
        ValueError: the tokenizer has ids outside the vocabulary, a weight is not finite, or a record is of no form
            that a card can show.
    """
    check_tokenizer(tokenizer, model.config.vocab_size)
    check_finite(model.state_dict(), "the model")
    settings, card, extra_files = settings or SentenceSettings(), card or Card(), extra_files or {}
    max_tokens = settings.max_tokens or model.config.max_position_embeddings
    model.save_pretrained(new)
    known = {field.name for field in dataclasses.fields(model.config)} | {"model_type"}  # not what a foreign file added
    stored = {name: value for name, value in read_json(new / "config.json").items() if name in known}
    write_json(new / "config.json", stored | {"auto_map": type(model.config)().auto_map})
    for path in Path(sys.modules[type(model).__module__].__file__).parent.glob("*.py"):
        if path.name != "__init__.py":
            shutil.copyfile(path, new / path.name)
    if type(model).__name__ == "M2BertModel" and tokenizer is not None:
        shutil.copyfile(Path(__file__).with_name("handler.py"), new / "handler.py")
    if tokenizer is not None:
        save_tokenizer(tokenizer, max_tokens, new)
    write_sentence_files(model, settings, new)
    records = {
        kind: public_record(f"{kind}.json", extra_files[f"{kind}.json"])
        for kind in KINDS
        if f"{kind}.json" in extra_files
    }
    for kind, record in records.items():
        checked(KINDS[kind], record, f"{kind}.json")
    card = dataclasses.replace(
        card,
        **records,
        document_prompt=settings.prompts.get("document") or "",
        max_tokens=max_tokens,
        has_tokenizer=(new / "tokenizer_config.json").is_file(),
        has_handler=(new / "handler.py").is_file(),
    )
    texts = {"requirements.txt": REQUIREMENTS, "README.md": render_card(model, card)} | extra_files
    for name, text in texts.items():
        (new / name).parent.mkdir(exist_ok=True)
        (new / name).write_text(text, encoding="utf-8")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> None:
    """Raise ValueError if the tokenizer cannot pad, or can give an id that the model has no embedding for."""
    if tokenizer is None:
        return
    if tokenizer.pad_token is None:
        raise ValueError("tokenizer has no padding token; name one as pad_token in its tokenizer_config.json")
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"tokenizer gives ids up to {largest} but the model has vocab_size={vocab_size}; "
            "use the tokenizer it was trained with, or resize_token_embeddings"
        )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, max_tokens: int, folder: Path) -> None:
    """Write a tokenizer that cuts texts at `max_tokens` and pads on the right."""
    previous = tokenizer.model_max_length, tokenizer.padding_side
    tokenizer.model_max_length, tokenizer.padding_side = max_tokens, "right"
    try:
        tokenizer.save_pretrained(folder)
        settings = read_json(folder / "tokenizer_config.json")
        settings = {name: value for name, value in settings.items() if name not in HOW_IT_WAS_LOADED | FOREIGN_CODE}
        write_json(folder / "tokenizer_config.json", settings)
    finally:
        tokenizer.model_max_length, tokenizer.padding_side = previous


def _unsharded(model: PreTrainedModel, state_dict: dict) -> PreTrainedModel:
    """Return a plain model of these weights: sharding (FSDP2) changes the class of a model, not only its tensors."""
    name = type(model).__name__.removeprefix("FSDP")
    with torch.device("meta"):
        plain = AUTO_CLASSES[name].from_config(copy.deepcopy(model.config))
    plain.load_state_dict(state_dict, assign=True)
    plain.tie_weights()
    return plain
