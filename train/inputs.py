"""Check what a run reads and writes before any data is read: paths and packages first, which costs no time.

The model comes last, as M2BertConfig takes seconds to import.
"""

import importlib.util
import re
from itertools import product
from pathlib import Path

from m2bert.files import check_writable, read_json
from m2bert.hub.outputs import check_output
from m2bert.terminal import nearest

from .settings import MlmSettings, OplSettings, RunSettings, load_settings
from .text.text_sources import HUB_ID, parse_sources

PYDOCS = Path("runs") / "pydocs"  # the folder of a source without a path
MODEL_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # on the Hub; sentence-transformers' own have no organization
CONTEXT_LENGTHS = {  # keys that the model's context bounds
    "mlm": ("data.max_tokens",),
    "opl": ("data.document_tokens", "data.query_tokens", "evaluation.document_tokens"),
}


def ready(name: str, argv: list[str]) -> RunSettings:
    """Return the settings of a run, with everything checked that needs no data: packages, paths, fields of the model.

    Raises:
        ValueError: names the argument, key or path; or as `load_settings`.
    """
    settings = load_settings(name, argv)
    check_writable(settings.output_dir, "output_dir")
    if not settings.resume:  # else what is there may be the finished run: `setup.check_place` compares
        check_output(settings.output_dir, settings.overwrite)
    path = settings.tokenizer.path
    if path is not None and not Path(path).is_dir() and not HUB_ID.fullmatch(path):
        raise ValueError(f"tokenizer.path={path}: there is no folder {path!r}, and it is no name on the Hub; name one")
    packages = ["accelerate", "pyarrow", "tokenizers"]
    packages += check_texts(settings) if name == "mlm" else check_tasks(settings)
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"this run needs the package {package}, which is not installed: pip install {package}")
    check_model(settings, CONTEXT_LENGTHS[name])
    return settings


def check_texts(settings: MlmSettings) -> list[str]:
    """Return the packages that the sources need. Raise ValueError for a source that is not there or lacks a split."""
    packages = []
    for source in parse_sources(settings.data.sources, lambda _: PYDOCS):
        if source.path is not PYDOCS:  # built where it is missing
            source.check_splits()
        if source.on_hub:
            packages.append("datasets")
            if settings.tokenizer.path is None and settings.model.path is None:
                raise ValueError(f"source {source.path} is streamed: name a tokenizer.path to read it with")
    return packages


def check_tasks(settings: OplSettings) -> list[str]:
    """Return the packages that a retrieval run needs. Raise ValueError for data or a teacher that are not there."""
    data, loss = settings.data, settings.loss
    if is_local(data.path):
        for split, kind in product(filter(None, ("train", data.development_split)), ("queries", "documents")):
            if not Path(data.path, kind, f"{split}.parquet").is_file():
                raise ValueError(f"data.path={data.path} has no {kind}/{split}.parquet; make it, or name another")
    for key in ("triples", "negatives_path"):
        path = getattr(data, key)
        on_hub = key == "triples" and path is not None and not Path(path).suffix and not Path(path).exists()
        if path is not None and not on_hub and not Path(path).is_file():
            raise ValueError(f"data.{key}={path} is no file; name one")
    if loss.name == "prototype" and not Path(loss.teacher).is_dir() and not MODEL_NAME.fullmatch(loss.teacher):
        raise ValueError(f"loss.teacher={loss.teacher} is no folder and no name on the Hub; name a model")
    return ["peft"] if settings.lora.rank else []


def is_local(path: str | None) -> bool:
    """Return whether data.path is meant as a folder, and not as the Hub's ORGANIZATION/NAME."""
    return path is not None and (path.count("/") != 1 or Path(path).exists() or Path(path).parent.is_dir())


def check_model(settings: RunSettings, length_keys: tuple[str, ...] = ()) -> None:
    """Raise ValueError for a model that cannot be made, or whose context is shorter than a length of `length_keys`.

    The path is looked at first, then M2BertConfig is imported, which takes seconds.
    """
    model = settings.model
    fields = model.new_model
    if model.path is not None:
        file = Path(model.path) / "config.json"
        fields = read_json(file) if file.is_file() else {}
        if fields.get("model_type") != "m2bert":
            kind = f"model_type={fields.get('model_type')!r}" if fields else "no config.json"
            raise ValueError(f"model.path={model.path} is no folder of an m2bert: it has {kind}; name another")
    from huggingface_hub.errors import StrictDataclassError

    from m2bert import M2BertConfig

    known = M2BertConfig.__dataclass_fields__
    for section in ("architecture", "new_model"):
        for name in getattr(model, section):
            if name not in known:  # M2BertConfig would keep it unread
                raise ValueError(f"model.{section}.{name} is no field of M2BertConfig{nearest(name, known)}")
    try:
        longest = M2BertConfig(**fields | model.architecture).max_position_embeddings
    except (StrictDataclassError, TypeError, ValueError) as error:
        where = f"model.path={model.path}" if model.path else "model.new_model"
        changed = f", model.architecture={model.architecture}" if model.architecture else ""
        raise ValueError(f"{where}{changed}: {' '.join(str(error).split())}") from error
    for key in length_keys:
        section, name = key.split(".")
        tokens = getattr(getattr(settings, section), name)
        if tokens is not None and tokens > longest:
            raise ValueError(f"{key}={tokens} exceeds the model's max_position_embeddings={longest}; lower {key}")
