"""Check what a run reads and writes before anything heavy is imported: folders, files, names."""

import importlib.util
import re
from pathlib import Path

from m2bert.files import check_writable, read_json
from m2bert.hub.outputs import check_output

from .config import load_config, namespace
from .model_settings import check_model
from .text.sources import HUB_ID, parse_sources

DEFAULTS = {"mlm": "mlm-small.yaml", "opl": "opl-small.yaml"}
LENGTHS = {  # keys that the model's context bounds
    "mlm": ("data.max_tokens",),
    "opl": ("data.document_tokens", "data.query_tokens", "evaluation.document_tokens"),
}
PYDOCS = Path("runs") / "pydocs"  # what a source without a path means
NEEDED = ("accelerate", "pyarrow", "tokenizers")
MODEL_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # on the Hub; sentence-transformers' own have no organization


def ready(name: str, argv: list[str]) -> dict:
    """Return the configuration of a run, with everything checked that needs no data.

    Args:
        name: `mlm` or `opl`.
        argv: see `load_config`.

    Raises:
        ValueError: names the argument, key or path.
    """
    config = load_config(DEFAULTS[name], argv)
    settings = namespace(config)
    prepare, prepared = getattr(settings, "prepare", None), getattr(settings.data, "prepared", None)
    for package in NEEDED:
        if importlib.util.find_spec(package) is None and not (package == "pyarrow" and prepared):
            raise ValueError(f"training needs {package}; pip install 'm2bert[train]'")
    check_prepared(prepare, prepared)
    if prepare is None:
        check_output_place(settings)
    if settings.model.path is not None:
        check_checkpoint(settings.model.path)
    path = settings.tokenizer.path
    if path is not None and not Path(path).is_dir() and not HUB_ID.fullmatch(path):
        raise ValueError(f"tokenizer.path={path}: there is no folder {path!r}, and it is no name on the Hub; name one")
    if prepared is None:
        (check_texts if name == "mlm" else check_tasks)(settings)
    lengths = {key: config[key.split(".")[0]][key.split(".")[1]] for key in LENGTHS[name]}
    check_model(config["model"], lengths)
    return config


def check_prepared(prepare: str | None, prepared: str | None):
    """Raise ValueError for a folder to prepare that is not empty, or a prepared one that is not there."""
    if prepare is not None:
        check_writable(prepare, "prepare")
        there = Path(prepare)
        if prepared is not None or there.is_file() or (there.is_dir() and any(there.iterdir())):
            raise ValueError(f"prepare={prepare} takes a new or empty folder, and not data.prepared with it")
    elif prepared is not None and not (Path(prepared) / "prepared.json").is_file():
        raise ValueError(f"data.prepared={prepared} has no prepared.json; name a folder that `prepare` wrote")


def check_output_place(settings):
    """Raise ValueError if the output cannot be written there, or something is there that is not to be replaced."""
    check_writable(settings.output_dir, "output_dir")
    if settings.resume:
        return  # what is there may be the finished run: `check_place` compares
    try:
        check_output(settings.output_dir, settings.overwrite)
    except ValueError as error:
        raise ValueError(f"output_dir={settings.output_dir}: {error}") from error


def check_checkpoint(path: str):
    """Raise ValueError unless `model.path` is the folder of an M2-BERT."""
    if not (Path(path) / "config.json").is_file():
        raise ValueError(f"model.path={path} has no config.json; name the folder of a checkpoint")
    kind = read_json(Path(path) / "config.json").get("model_type")
    if kind != "m2bert":
        raise ValueError(f"model.path={path} has model_type={kind!r}; name the folder of an m2bert")


def check_texts(settings):
    """Raise ValueError for a source of pretraining that is not there, or lacks a split."""
    for source in parse_sources(settings.data.sources, lambda _: PYDOCS):
        if not source.on_hub:
            if source.path is not PYDOCS:  # which is built where it is missing
                source.splits()
            continue
        if settings.tokenizer.path is None and settings.model.path is None:
            raise ValueError(f"source {source.path} is streamed: name a tokenizer.path to read it with")
        if settings.prepare is not None:
            raise ValueError(f"source {source.path} is streamed; to prepare it, save a part of it as parquet")
        if importlib.util.find_spec("datasets") is None:
            raise ValueError(f"source {source.path} is streamed, which needs datasets; pip install datasets")


def check_tasks(settings):
    """Raise ValueError for retrieval data, triples, negatives or a teacher that are not there."""
    data = settings.data
    if is_local(data.path):
        folder = Path(data.path)
        if not folder.is_dir():
            raise ValueError(
                f"data.path={folder} is no folder; name one with queries/train.parquet and documents/train.parquet"
            )
        for split in filter(None, ("train", data.development_split)):
            for kind in ("queries", "documents"):
                if not (folder / kind / f"{split}.parquet").is_file():
                    raise ValueError(
                        f"data.path={folder} has no {kind}/{split}.parquet; make it, or name another folder"
                    )
    for key in ("triples", "negatives_path"):
        path = getattr(data, key)
        on_hub = key == "triples" and path is not None and not Path(path).suffix and not Path(path).exists()
        if path is not None and not on_hub and not Path(path).is_file():
            raise ValueError(f"data.{key}={path} is no file; name one")
    teacher = settings.loss.teacher
    if settings.loss.name == "prototype" and not Path(teacher).is_dir() and not MODEL_NAME.fullmatch(teacher):
        raise ValueError(f"loss.teacher={teacher} is no folder and no name on the Hub; name a model")


def is_local(path: str | None) -> bool:
    """Return whether data.path is meant as a folder, and not as the Hub's ORGANIZATION/NAME."""
    return path is not None and (path.count("/") != 1 or Path(path).exists() or Path(path).parent.is_dir())
