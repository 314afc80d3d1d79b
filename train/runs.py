"""What both entry points do before and after training: data, tokenizer, model, and the folder that is left."""

import json
import logging
import sys
from pathlib import Path

import pyarrow.parquet as pq
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import AutoConfig

import modeling_m2bert  # noqa: F401  (registers m2bert with the Auto classes)
from m2bert_hub.folder import check_output, write_folder

from .init import identity_start_
from .tokenizer import load_tokenizer, train_wordpiece

logger = logging.getLogger(__name__)

TEXT_COLUMNS = {"documents": "passage", ".": "text"}


def command_line(main, name: str):
    """Run an entry point: bad input, or a loss that is not finite, is one line on stderr and exit code 2."""
    try:
        main(sys.argv[1:])
    except (ValueError, FloatingPointError) as error:
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
    check_output(Path(config.output_dir), config.overwrite)
    set_seed(config.seed)
    return accelerator


def data_folder(path: str | None) -> tuple[Path, str]:
    """(folder, fingerprint) of the data; without a path pydocs, built from the installed packages' documentation."""
    if path is not None:
        return Path(path), str(path)
    from m2bert_eval.pydocs import build_pydocs

    folder = Path("runs") / "pydocs"
    return folder, build_pydocs(folder)


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


def make_model(auto_class, settings, tokenizer):
    """A checkpoint (`model.path`, with `model.architecture` laid over its configuration), or a new model.

    Raises:
        ValueError: an unknown start, or a tokenizer whose ids do not fit the checkpoint.
    """
    if settings.start not in ("standard", "identity"):
        raise ValueError(f"model.start={settings.start!r} is unknown; choose standard or identity")
    fields = dict(settings.architecture)
    if settings.path is not None:
        return auto_class.from_pretrained(settings.path, **fields)
    size = max(tokenizer.get_vocab().values()) + 1
    fields.setdefault("vocab_size", -(-size // 8) * 8)
    model = auto_class.from_config(AutoConfig.for_model("m2bert", pad_token_id=tokenizer.pad_token_id, **fields))
    if settings.start == "identity":
        identity_start_(model)
    return model


def finish(accelerator: Accelerator, model, tokenizer, config, record: dict):
    """Write the trained model as a complete Hub folder, with `training.json` beside the weights."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        output = write_folder(accelerator.unwrap_model(model), tokenizer, config.output_dir, overwrite=config.overwrite)
        (output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        logger.info("wrote %s", output)
