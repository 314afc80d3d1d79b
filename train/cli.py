"""`m2bert train`: pretraining and fine-tuning, in one process or several."""

from typing import Annotated

import typer

from m2bert.terminal import run_command

from .start import train

app = typer.Typer(no_args_is_help=True, help="Train a model.")
ANYTHING = {"ignore_unknown_options": True}  # `train` says what it does not understand, and what is near

Processes = Annotated[int, typer.Option("--processes", min=1, help="Processes that train together, one a GPU.")]
Config = Annotated[list[str] | None, typer.Option("--config", help="Shipped configuration or YAML file; repeatable.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Two steps of a tiny model on stand-in data.")]
Keys = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as optim.lr=1e-4.")]


@app.command(context_settings=ANYTHING)
def mlm(keys: Keys = None, config: Config = None, dry_run: DryRun = False, processes: Processes = 1):
    """Pretrain with masked tokens; by default a small model on pydocs, in about a minute."""
    _train("mlm", keys, config, dry_run, processes)


@app.command(context_settings=ANYTHING)
def opl(keys: Keys = None, config: Config = None, dry_run: DryRun = False, processes: Processes = 1):
    """Fine-tune for retrieval; by default a small new model on pydocs, in about two minutes."""
    _train("opl", keys, config, dry_run, processes)


def _train(name: str, keys: list[str] | None, config: list[str] | None, dry_run: bool, processes: int):
    files = [part for file in config or [] for part in ("--config", file)]
    argv = [*files, *(keys or []), *(["--dry-run"] if dry_run else [])]
    run_command(name, lambda: train(name, argv, processes))
