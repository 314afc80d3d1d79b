"""What both entry points do before and after training: data, tokenizer, model, and the folder that is left."""

import dataclasses
import difflib
import hashlib
import json
import logging
import sys
from pathlib import Path

import pyarrow.parquet as pq
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from m2bert_hub.checkpoint import load_strictly
from m2bert_hub.folder import check_output, check_tokenizer, write_folder

from .init import identity_start_
from .tokenizer import load_tokenizer, train_wordpiece

logger = logging.getLogger(__name__)

TEXT_COLUMNS = {"documents": "passage", ".": "text"}


def command_line(main, name: str):
    """Run an entry point: bad input, or a loss that is not finite, is one line on stderr and exit code 2."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(sys.modules["__main__"].__doc__)
        return
    try:
        main(sys.argv[1:])
    except (ValueError, FloatingPointError, OSError, SafetensorError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)


def prepare(config, argv: list[str], name: str) -> Accelerator:
    """Logging, seed, output folder. The first log line says what runs."""
    accelerator = Accelerator()
    logging.basicConfig(level=logging.INFO if accelerator.is_main_process else logging.WARNING, format="%(message)s")
    transformers.utils.logging.disable_progress_bar()
    if argv:
        logger.info("%s: %s", name, " ".join(argv))
    else:
        logger.info("%s without arguments: the small offline default (pydocs, configs/%s-small.yaml)", name, name)
    check_output(config.output_dir, config.overwrite)
    set_seed(config.seed)
    return accelerator


def require(config, **least: int):
    """Raise ValueError for a setting below its least value; `data__row_tokens=3` is data.row_tokens >= 3."""
    for name, minimum in least.items():
        section, key = name.split("__")
        value = getattr(getattr(config, section), key)
        if value < minimum:
            raise ValueError(f"{section}.{key}={value} must be at least {minimum}")


def require_context(model, key: str, tokens: int):
    """Raise ValueError if texts of `tokens` tokens do not fit the model."""
    longest = model.config.max_position_embeddings
    if tokens > longest:
        raise ValueError(f"{key}={tokens} exceeds the model's max_position_embeddings={longest}; lower {key}")


def data_folder(path: str | None) -> Path:
    """The folder of the data; without a path pydocs, built from the installed packages' documentation."""
    if path is not None:
        return Path(path)
    from m2bert_eval.pydocs import build_pydocs

    folder = Path("runs") / "pydocs"
    build_pydocs(folder)
    return folder


def fingerprint(texts: list[str]) -> str:
    """sha256 of texts, in order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text.encode())
    return digest.hexdigest()


def read_texts(folder: Path, split: str) -> list[str]:
    """Texts of a split: `documents/SPLIT.parquet` (LoCoV1 schema, column passage) or `SPLIT.parquet` (column text).

    Raises:
        ValueError: neither file exists, or its text column is missing.
    """
    for subfolder, column in TEXT_COLUMNS.items():
        path = folder / subfolder / f"{split}.parquet"
        if path.is_file():
            names = pq.read_schema(path).names
            if column not in names:
                raise ValueError(f"{path} has no column {column!r} (it has {', '.join(names)})")
            return [text for text in pq.read_table(path, columns=[column])[column].to_pylist() if text]
    raise ValueError(f"data.path={folder} holds neither documents/{split}.parquet nor {split}.parquet")


def make_tokenizer(settings, model_path: str | None, texts: list[str]):
    """The tokenizer of `tokenizer.path`, else of the checkpoint, else one trained on the texts."""
    path = settings.path or model_path
    if path is not None:
        return load_tokenizer(path)
    logger.info("training a WordPiece tokenizer of %d tokens on %d texts", settings.vocab_size, len(texts))
    return train_wordpiece(texts, settings.vocab_size)


def make_model(auto_class, settings, tokenizer) -> tuple[PreTrainedModel, set[str]]:
    """A checkpoint (`model.path`) or a new model, each with the changes of `model.architecture`.

    Returns:
        The model, and the names of its tensors that are new: all of them, or a pooler that the checkpoint lacked.

    Raises:
        ValueError: an unknown start, an unknown field, a checkpoint with missing or unexpected tensors.
    """
    if settings.start not in ("standard", "identity"):
        raise ValueError(f"model.start={settings.start!r} is unknown; choose standard or identity")
    check_fields(settings.architecture, "model.architecture")
    check_fields(settings.new_model, "model.new_model")
    if settings.path is not None:
        model, missing = load_strictly(auto_class, settings.path, may_miss=("pooler.",), **settings.architecture)
        check_tokenizer(tokenizer, model.config.vocab_size)
        return model, missing
    size = max(tokenizer.get_vocab().values()) + 1
    fields = {"vocab_size": -(-size // 8) * 8, "pad_token_id": tokenizer.pad_token_id}
    fields |= settings.new_model | settings.architecture
    model = auto_class.from_config(AutoConfig.for_model("m2bert", **fields))
    check_tokenizer(tokenizer, model.config.vocab_size)
    if settings.start == "identity":
        identity_start_(model)
    return model, set(model.state_dict())


def check_fields(fields: dict, section: str):
    """Raise ValueError for a name that is no field of M2BertConfig; the configuration itself would keep it unread."""
    known = {field.name for field in dataclasses.fields(AutoConfig.for_model("m2bert"))}
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise ValueError(f"{section}.{name} is no field of M2BertConfig; the nearest one is {near[0]!r}")


def finish(accelerator: Accelerator, model, tokenizer, config, record: dict):
    """Write the trained model as a complete Hub folder, with `training.json` beside the weights."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        extra = {"training.json": json.dumps(record, indent=2) + "\n"}
        model = accelerator.unwrap_model(model)
        output = write_folder(model, tokenizer, config.output_dir, overwrite=config.overwrite, extra_files=extra)
        logger.info("wrote %s", output)
