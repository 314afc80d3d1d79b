"""Commands whose bad input is one line on stderr: what `m2bert` and its parts, run by themselves, have in common."""

from typer.core import TyperGroup

from .terminal import log_to_terminal, run_command


class CommandGroup(TyperGroup):
    """A group of commands that run within `run_command`, with warnings on stderr."""

    def invoke(self, ctx):
        log_to_terminal()
        run_command("m2bert", lambda: super(CommandGroup, self).invoke(ctx))
