"""The `m2bert` command: the commands of every room by name; a room is imported when one of its own is called."""

import importlib
import logging
import os
from typing import Annotated

import typer

from . import __version__
from .terminal import CommandGroup

COMMANDS = {  # command: module, and its command there (None: the module's whole group)
    "export": ("m2bert.hub.cli", "export"),
    "convert": ("m2bert.hub.cli", "convert"),
    "push": ("m2bert.hub.cli", "push"),
    "index": ("m2bert.search.cli", "index"),
    "search": ("m2bert.search.cli", "search"),
    "embed": ("m2bert.search.cli", "embed"),
    "serve": ("m2bert.search.cli", "serve"),
    "eval": ("m2bert.eval.cli", "eval"),
    "compare": ("m2bert.eval.cli", "compare"),
    "report": ("m2bert.eval.report.page", "report"),
    "analyse": ("m2bert.eval.analyses.cli", None),
    "train": ("m2bert.train.cli", None),
}


class LazyGroup(CommandGroup):
    """Commands of other modules, imported when they are called."""

    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.commands = dict.fromkeys(sorted(COMMANDS))  # names that are suggested

    def get_command(self, ctx, cmd_name):
        if cmd_name not in COMMANDS:
            return None
        module, command = COMMANDS[cmd_name]
        group = typer.main.get_group(importlib.import_module(module).app)
        found = group if command is None else group.get_command(ctx, command)
        found.name = cmd_name
        return found


app = typer.Typer(  # plain tracebacks: typer's own may show local variables, a token among them
    cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="M2-BERT: long-context encoders.",
)  # fmt: skip


@app.callback(invoke_without_command=True)
def common(version: Annotated[bool, typer.Option("--version", is_eager=True, help="Show the version.")] = False):
    """M2-BERT: long-context encoders."""
    if version:
        typer.echo(__version__)
        raise typer.Exit()
    logging.getLogger("m2bert.hub").setLevel(logging.INFO)


def main():
    """Entry point: bad input is one line on stderr and exit code 2.

    The threads of torch soon sleep while they wait for each other, unless OMP_WAIT_POLICY says otherwise. By default
    they spin, and where other processes use the cores, two threads are then many times slower than one.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # is read when torch is imported
    app()


if __name__ == "__main__":
    main()
