"""Write model folders, with everything that a Hub repository of M2-BERT holds, and export checkpoints to them."""

import copy
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from m2bert.files import digest, read_json, read_text
from m2bert.schema import checked

from .card import KINDS, SHOWN_DIGITS, About, Card, public_record, read_about, render_card
from .checkpoint import AUTO_CLASSES, check_finite, check_links, load_checkpoint, load_tokenizer
from .client import check_repo_id
from .outputs import check_apart, check_output, whole_folder
from .scores import leaderboard_file, read_scores
from .sentence_files import SentenceSettings, read_sentence_files, write_json, write_sentence_files

REQUIREMENTS = "transformers>=5.17,<6\ntorch>=2.11\nsentence-transformers>=6\n"
RECORDS = ("training.json", "conversion.json")  # they tell how a model was made
RANGES = "int8_ranges.json"  # of the numbers of vectors, as quantize_embeddings of sentence-transformers takes them
# Settings of a tokenizer that are not written: they name foreign code, or tell how transformers loaded the tokenizer.
DROPPED_TOKENIZER_SETTINGS = {"auto_map", "custom_pipelines", "is_local", "local_files_only"}


def export_checkpoint(
    model_dir: str | Path, output_dir: str | Path, *, overwrite: bool = False, repository: str | None = None,
    results: list[Path] | None = None, about: Path | None = None, onnx: bool = False,
) -> Path:  # fmt: skip
    """Write the Hub folder of a checkpoint that training wrote or sentence-transformers saved; see `write_folder`.

    The folder keeps the checkpoint's `RECORDS`, and what sentence-transformers stored with it: prompts, the maximum
    length and a trained Dense layer. Raises ValueError, before anything is written, if an input cannot be read, does
    not fit the others, or lies in the output folder.

    Args:
        repository: `org/name` for the card, if it is known.
        results: files that `m2bert eval` wrote, with scores of exactly this checkpoint, for the card and
            `.eval_results/`.
        about: YAML file with more statements for the card, see `About`.
        onnx: also write the model as `onnx/model.onnx`, see `write_onnx`.
    """
    model_dir, results = Path(model_dir), results or []
    output = check_output(output_dir, overwrite)
    check_apart(output, [model_dir, *results, *([about] if about else [])])
    if repository is not None:
        check_repo_id(repository)
    with whole_folder(output, overwrite) as new:
        check_links(model_dir)
        statements = read_about(about) if about else About()
        scores = read_scores(results, model_dir)
        records = {name: public_record(name, text) for name, text in read_records(model_dir).items()}
        texts = {name: json.dumps(record, indent=2) + "\n" for name, record in records.items()}
        model = load_checkpoint(model_dir)
        settings = read_sentence_files(model, model_dir)
        card = Card(repository=repository, about=statements, scores=scores, has_onnx=onnx)
        extra_files = texts | leaderboard_file(scores)
        fill_folder(new, model, load_tokenizer(model_dir), settings=settings, card=card, extra_files=extra_files)
        if (model_dir / RANGES).is_file():
            shutil.copyfile(model_dir / RANGES, new / RANGES)
        if onnx:
            from .onnx import write_onnx

            write_onnx(model, new)
    return output


def read_records(folder: Path, names: tuple[str, ...] = RECORDS) -> dict[str, str]:
    """Return {file name: text} of the records that a folder has."""
    return {name: read_text(folder / name) for name in names if (folder / name).is_file()}


def write_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, output_dir: str | Path, *,
    overwrite: bool = False, state_dict: dict | None = None, **contents,
) -> Path:  # fmt: skip
    """Write a complete, self-contained Hub folder.

    It holds safetensors, configuration, code, tokenizer, sentence-transformers files, requirements.txt and a README.md
    card. The folder of an embedding model with a tokenizer also holds the handler.py that Inference Endpoints run.

    The folder loads with `AutoModel.from_pretrained(dir, trust_remote_code=True)` and
    `SentenceTransformer(dir, trust_remote_code=True)` where this package is not installed. If writing fails, no part
    of the folder is left (`whole_folder`). Raises ValueError if the output is refused (`check_output`), the tokenizer
    does not fit the model, or a weight is not finite.

    Args:
        model: any M2-BERT class.
        tokenizer: saved with the model's maximum length and right padding; None leaves it out.
        output_dir: the folder to make; links are followed.
        overwrite: replace a model folder that exists.
        state_dict: the whole weights, where the model holds only a shard of them.
        contents: settings, card and extra_files, see `fill_folder`.
    """
    output = check_output(output_dir, overwrite)
    check_tokenizer(tokenizer, model.config.vocab_size)
    if state_dict is not None:  # FSDP2 has replaced the class of a sharded model: its name begins with "FSDP"
        auto_class = AUTO_CLASSES[type(model).__name__.removeprefix("FSDP")]
        with torch.device("meta"):
            model = auto_class.from_config(copy.deepcopy(model.config))
        model.load_state_dict(state_dict, assign=True)
        model.tie_weights()
    with whole_folder(output, overwrite) as new:
        fill_folder(new, model, tokenizer, **contents)
    return output


def fill_folder(
    new: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, *,
    settings: SentenceSettings | None = None, card: Card | None = None, extra_files: dict[str, str] | None = None,
) -> None:  # fmt: skip
    """Write the files that `write_folder` lists into the empty folder `new`, which `whole_folder` gives.

    Args:
        settings: prompts and other settings of sentence-transformers.
        card: the statements of the card. Those about the model, and those in `RECORDS`, are filled in here.
        extra_files: {file name: text} of more files, which may be `RECORDS`.
    """
    check_tokenizer(tokenizer, model.config.vocab_size)
    check_finite(model.state_dict(), "the model")
    settings, card, extra_files = settings or SentenceSettings(), card or Card(), extra_files or {}
    max_tokens = settings.max_tokens or model.config.max_position_embeddings
    model.save_pretrained(new)
    # A config.json of another package may have added settings that M2-BERT does not know: they are left out.
    known = {field.name for field in dataclasses.fields(model.config)} | {"model_type"}
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
    records = {}
    for kind, schema in KINDS.items():  # of records: "training" and "conversion"
        name = f"{kind}.json"
        if name in extra_files:
            records[kind] = public_record(name, extra_files[name])
            checked(schema, records[kind], name)
    card = dataclasses.replace(
        card,
        **records,
        weights=[f"{path.name} {digest(path)[:SHOWN_DIGITS]}" for path in sorted(new.glob("*.safetensors"))],
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
    """Raise ValueError if the tokenizer cannot pad, or has a token id that the model has no embedding for."""
    if tokenizer is None:
        return
    largest = max(tokenizer.get_vocab().values())
    if tokenizer.pad_token is None or largest >= vocab_size:
        raise ValueError(
            f"tokenizer gives ids up to {largest} and has pad_token={tokenizer.pad_token!r}, but the model has "
            f"vocab_size={vocab_size} and needs a padding token; use the tokenizer it was trained with"
        )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, max_tokens: int, folder: Path) -> None:
    """Write a tokenizer that cuts texts at `max_tokens` and pads on the right."""
    if backend := getattr(tokenizer, "backend_tokenizer", None):  # it keeps those of its last call, and saves them
        backend.no_truncation()
        backend.no_padding()
    previous = tokenizer.model_max_length, tokenizer.padding_side
    tokenizer.model_max_length, tokenizer.padding_side = max_tokens, "right"
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length, tokenizer.padding_side = previous
    settings = read_json(folder / "tokenizer_config.json")
    kept = {name: value for name, value in settings.items() if name not in DROPPED_TOKENIZER_SETTINGS}
    write_json(folder / "tokenizer_config.json", kept)
