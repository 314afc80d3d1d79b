"""`m2bert train`: check the arguments, then import torch and train, in this process or in several."""

import importlib.util
import logging
import os
import re
import sys
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import typer

from m2bert.eval.tasks.kinds import lacks
from m2bert.files import check_writable, read_json
from m2bert.hub.outputs import check_output
from m2bert.terminal import nearest, one_line, run_command

from .settings import (
    METRIC_PACKAGES,
    PYDOCS,
    AlignSettings,
    MlmSettings,
    ModelSettings,
    OplSettings,
    RunSettings,
    is_local,
    load_settings,
)
from .text.sources import HUB_ID, parse_source, parse_sources

BODIES = {"mlm": "mlm_run", "opl": "retrieval_run", "align": "align_run"}
ANYTHING = {"ignore_unknown_options": True}  # `load_settings` names what it does not know, and what is near
MODEL_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # on the Hub; sentence-transformers' own have no organization
CONTEXT_LENGTHS = {  # keys that the model's context bounds
    "mlm": ("data.max_tokens",),
    "opl": ("data.document_tokens", "data.query_tokens", "evaluation.document_tokens"),
    "align": ("data.max_tokens",),
}

app = typer.Typer(no_args_is_help=True, help="Train a model.")
Processes = Annotated[int, typer.Option("--processes", min=1, help="Processes that train together, one a GPU.")]
Config = Annotated[list[str] | None, typer.Option("--config", help="Shipped configuration or YAML file; repeatable.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Two steps of a tiny model on stand-in data.")]
Keys = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as optim.lr=1e-4.")]


@app.command(context_settings=ANYTHING)
def mlm(keys: Keys = None, config: Config = None, dry_run: DryRun = False, processes: Processes = 1):
    """Pretrain with masked tokens; by default a small model on pydocs, in about a minute."""
    start("mlm", keys, config, dry_run, processes)


@app.command(context_settings=ANYTHING)
def opl(keys: Keys = None, config: Config = None, dry_run: DryRun = False, processes: Processes = 1):
    """Fine-tune for retrieval; by default a small new model on pydocs, in about two minutes."""
    start("opl", keys, config, dry_run, processes)


@app.command(context_settings=ANYTHING)
def align(keys: Keys = None, config: Config = None, dry_run: DryRun = False, processes: Processes = 1):
    """Turn the vectors of stretches of text toward those of a teacher, `loss.teacher`."""
    start("align", keys, config, dry_run, processes)


def start(name: str, keys: list[str] | None, config: list[str] | None, dry_run: bool, processes: int) -> None:
    """Train with the arguments of a command line; files count before keys."""
    files = [part for file in config or [] for part in ("--config", file)]
    run_command(name, lambda: train(name, [*files, *(keys or []), *["--dry-run"] * dry_run], processes))


def train(name: str, argv: list[str], processes: int = 1) -> None:
    """Check the arguments, then train in this process, or in several of accelerate's launcher. If one of several fails,
    it has printed why; the exit code is its own."""
    settings = ready(name, argv)
    if processes == 1:
        importlib.import_module(f".{BODIES[name]}", __package__).main(argv, settings)
        return
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    given = ["--num_processes", str(processes)]
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
        given.append("--multi_gpu")  # several processes, of whatever kind
    for noisy in ("torch.distributed.elastic", "accelerate.commands.launch"):  # the failed process has said why
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args([*given, "-m", f"m2bert.train.{name}", *argv]))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        sys.exit(2 if 2 in codes else codes[0] if codes[0] > 0 else 128 - codes[0])
    except SignalException as stop:
        sys.exit(128 + stop.sigval)


def ready(name: str, argv: list[str]) -> RunSettings:
    """Return the settings of a run, with everything checked that needs no data: packages, paths, fields of the model.
    Paths and packages come first, which costs no time; M2BertConfig takes seconds to import."""
    settings = load_settings(name, argv)
    if settings.prepare is not None:
        check_writable(settings.prepare, "prepare")
        there = Path(settings.prepare)
        if there.is_file() or (there.is_dir() and any(there.iterdir())):
            raise ValueError(f"prepare={there} is there already; name a new or empty folder")
    elif not settings.resume:  # else what is there may be the finished run: `check_place` compares
        check_output(settings.output_dir, settings.overwrite)
    wrong, packages = CHECKS[name](settings)
    wrong += wrong_paths(settings)
    if wrong:
        raise ValueError("; ".join(wrong))
    for package in ("accelerate", "tokenizers", *packages):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"this run needs {package}, which is not installed: pip install 'm2bert[train,peft]'")
    check_model(settings.model, {key: attrgetter(key)(settings) for key in CONTEXT_LENGTHS[name]})
    return settings


def wrong_paths(settings: RunSettings) -> list[str]:
    """Return what is wrong with the paths of tokenizer, model and prepared data."""
    tokenizer, model, prepared = settings.tokenizer.path, settings.model.path, settings.data.prepared
    wrong = []
    if tokenizer is not None and not Path(tokenizer).is_dir() and not HUB_ID.fullmatch(tokenizer):
        wrong.append(f"tokenizer.path={tokenizer} is no folder and no name on the Hub")
    config = Path(model or "", "config.json")
    if model is not None and not (config.is_file() and read_json(config).get("model_type") == "m2bert"):
        wrong.append(f"model.path={model} has no config.json of an m2bert")
    if prepared is not None and not Path(prepared, "prepared.json").is_file():
        wrong.append(f"data.prepared={prepared} has no prepared.json; name a folder that `prepare` wrote")
    return wrong


def check_texts(settings: MlmSettings) -> tuple[list[str], list[str]]:
    """Return what is wrong with the sources, and the packages that they need. Raise ValueError for a source that is not
    there or lacks a split."""
    wrong, packages = [], ["pyarrow"]
    if settings.data.prepared is not None:
        return [], []
    for source in parse_sources(settings.data.sources, lambda _: PYDOCS):
        if source.on_hub:
            packages.append("datasets")
            if settings.prepare is not None or (settings.tokenizer.path is None and settings.model.path is None):
                wrong.append(
                    f"source {source.path} is streamed: name a tokenizer.path to read it with; to prepare it, save a "
                    "part of it as parquet"
                )
        elif source.path is not PYDOCS:  # built where it is missing
            source.splits()
    return wrong, packages


def check_aligned(settings: AlignSettings) -> tuple[list[str], list[str]]:
    """Return what is wrong with the sources and the teacher, and the packages that they need."""
    if settings.data.prepared is not None:
        return [], []
    wrong, teacher = [], settings.loss.teacher
    for number, entry in enumerate(settings.data.sources):
        source = parse_source(entry, f"data.sources[{number}]", lambda _: PYDOCS)
        if source.on_hub:
            wrong.append(f"source {source.path} is on the Hub; save a part of it as parquet")
        elif source.path is not PYDOCS:  # built where it is missing
            source.splits()
    if teacher is None:
        wrong.append("loss.teacher=null; name a model of sentence-transformers, a folder or a Hub id")
    elif not Path(teacher).is_dir() and (teacher.startswith(".") or not MODEL_NAME.fullmatch(teacher)):
        wrong.append(f"loss.teacher={teacher} is no folder and no name on the Hub")
    return wrong, ["pyarrow", "sentence_transformers"]


def check_tasks(settings: OplSettings) -> tuple[list[str], list[str]]:
    """Return what is wrong with the paths of data and teacher, and the packages that a retrieval run needs."""
    data, loss = settings.data, settings.loss
    packages = [*METRIC_PACKAGES] * settings.evaluation.select + ["peft"] * (settings.lora.rank > 0)
    if data.prepared is not None:
        return [], packages
    wrong = []
    if is_local(data.path):
        splits = filter(None, ("train", data.development_split))
        wrong += [f"data.path={data.path} has no {name}" for split in splits for name in lacks(Path(data.path), split)]
    on_hub = data.triples is not None and not Path(data.triples).suffix and not is_local(data.triples)
    for key, path in (("triples", None if on_hub else data.triples), ("negatives_path", data.negatives_path)):
        if path is not None and not Path(path).is_file():
            wrong.append(f"data.{key}={path} is no file")
    if loss.name == "prototype" and not Path(loss.teacher).is_dir() and not MODEL_NAME.fullmatch(loss.teacher):
        wrong.append(f"loss.teacher={loss.teacher} is no folder and no name on the Hub")
    return wrong, ["pyarrow", *packages]


CHECKS = {"mlm": check_texts, "opl": check_tasks, "align": check_aligned}


def check_model(model: ModelSettings, lengths: dict[str, int | None]) -> None:
    """Raise ValueError for a model that cannot be made, or whose context is shorter than one of the `lengths`."""
    fields = model.new_model if model.path is None else read_json(Path(model.path, "config.json"))
    from m2bert import M2BertConfig

    known = M2BertConfig.__dataclass_fields__
    for section in ("architecture", "new_model"):
        for name in getattr(model, section).keys() - known:  # M2BertConfig would keep it unread
            raise ValueError(f"model.{section}.{name} is no field of M2BertConfig{nearest(name, known)}")
    try:
        longest = M2BertConfig(**fields | model.architecture).max_position_embeddings
    except Exception as error:  # foreign settings can fail in any way
        where = f"model.path={model.path}" if model.path else "model.new_model"
        raise ValueError(f"{where} with model.architecture describes no M2-BERT ({one_line(error)})") from error
    long = [f"{key}={tokens}" for key, tokens in lengths.items() if tokens is not None and tokens > longest]
    if long:
        raise ValueError(f"{', '.join(long)} exceeds the model's max_position_embeddings={longest}; lower it")
