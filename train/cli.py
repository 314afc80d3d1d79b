"""`m2bert train`: check the arguments, then import torch and train, in this process or in several."""

import importlib
import logging
import os
import sys
from typing import Annotated

import typer

from m2bert.terminal import run_command

from .inputs import ready

BODIES = {"mlm": "mlm_run", "opl": "retrieval_run"}
ANYTHING = {"ignore_unknown_options": True}  # `load_settings` names what it does not know, and what is near

app = typer.Typer(no_args_is_help=True, help="Train a model.")
Processes = Annotated[int, typer.Option("--processes", min=1, help="Processes that train together, one a GPU.")]
Config = Annotated[list[str] | None, typer.Option("--config", help="Shipped configuration or YAML file; repeatable.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Two steps of a tiny model on stand-in data.")]
Keys = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as optim.lr=1e-4.")]


@app.command(context_settings=ANYTHING)
def mlm(keys: Keys = None, config: Config = None, dry_run: DryRun = False, processes: Processes = 1):
    """Pretrain with masked tokens; by default a small model on pydocs, in about a minute."""
    run_command("mlm", lambda: train("mlm", as_written(keys, config, dry_run), processes))


@app.command(context_settings=ANYTHING)
def opl(keys: Keys = None, config: Config = None, dry_run: DryRun = False, processes: Processes = 1):
    """Fine-tune for retrieval; by default a small new model on pydocs, in about two minutes."""
    run_command("opl", lambda: train("opl", as_written(keys, config, dry_run), processes))


def as_written(keys: list[str] | None, config: list[str] | None, dry_run: bool) -> list[str]:
    """Return the arguments as train/mlm.py and train/opl.py take them."""
    return [*(part for file in config or [] for part in ("--config", file)), *(keys or []), *["--dry-run"] * dry_run]


def command_line(name: str, text: str) -> None:
    """Run train/mlm.py or train/opl.py with the arguments of the process; `text` is what --help prints."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(text)
        return
    run_command(name, lambda: train(name, sys.argv[1:]))


def train(name: str, argv: list[str], processes: int = 1) -> None:
    """Check the arguments, then train in this process, or in several of accelerate's launcher.

    Raises:
        ValueError: a mistake in the arguments, before anything is started.
        SystemExit: one of several processes failed. It has printed why; the exit code is its own.
    """
    settings = ready(name, argv)
    if processes == 1:
        importlib.import_module(f".{BODIES[name]}", __package__).main(argv, settings)
    else:
        launch(name, argv, processes)


def launch(name: str, argv: list[str], processes: int) -> None:
    """Train in several processes. The launcher's own report of a failed process is left out: it has said why."""
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    given = ["--num_processes", str(processes)]
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
        given.append("--multi_gpu")  # several processes, of whatever kind
    for noisy in ("torch.distributed.elastic", "accelerate.commands.launch"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args([*given, "-m", f"m2bert.train.{name}", *argv]))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        sys.exit(2 if 2 in codes else codes[0] if codes[0] > 0 else 128 - codes[0])
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
