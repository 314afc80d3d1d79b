"""The `m2bert` command: export and convert here; eval is mounted by name, so that it is imported only when used."""

import importlib
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

MOUNTED = {  # command: module, and its command there (None: the module's whole group)
    "eval": ("m2bert_eval.cli", "eval"),
    "compare": ("m2bert_eval.cli", "compare"),
    "report": ("m2bert_eval.report.cli", "report"),
    "analyse": ("m2bert_eval.analyses.cli", None),
}


class LazyGroup(TyperGroup):
    """Commands of other packages, imported when they are called."""

    def list_commands(self, ctx):
        return sorted([*super().list_commands(ctx), *MOUNTED])

    def get_command(self, ctx, cmd_name):
        if cmd_name in MOUNTED:
            module, command = MOUNTED[cmd_name]
            group = typer.main.get_group(importlib.import_module(module).app)
            found = group if command is None else group.get_command(ctx, command)
            found.name = cmd_name
            return found
        return super().get_command(ctx, cmd_name)


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, help="M2-BERT: long-context encoders.")

Output = Annotated[Path, typer.Option("--output", help="Folder to make.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it is not empty.")]


@app.command()
def export(
    model: Annotated[Path, typer.Option("--model", help="Checkpoint folder.")],
    output: Output,
    repo: Annotated[str | None, typer.Option("--repo", help="org/name on the Hub, for the card.")] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", help="File of `m2bert eval` with scores of this checkpoint; repeatable."),
    ] = None,
    about: Annotated[
        Path | None, typer.Option("--about", help="YAML file for the card: license, language, data, limits, text.")
    ] = None,
    overwrite: Overwrite = False,
):
    """Write a complete Hub folder from a checkpoint."""
    from transformers.utils.logging import disable_progress_bar

    from .export import export_checkpoint

    disable_progress_bar()

    written = export_checkpoint(model, output, overwrite=overwrite, repository=repo, results=results, about=about)
    typer.echo(written)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Weights of the research code: .pt, .bin or .safetensors.")],
    output: Output,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="The original's configuration as JSON; by default config.json beside the weights."
        ),
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="Folder of the tokenizer.")] = None,
    overwrite: Overwrite = False,
):
    """Convert a checkpoint of the original research code to a Hub folder."""
    from transformers.utils.logging import disable_progress_bar

    from .checkpoint import read_json
    from .convert import convert_checkpoint

    disable_progress_bar()
    beside = source.with_name("config.json")
    config = config or (beside if beside.is_file() else None)
    upstream = read_json(config) if config else {}
    typer.echo(convert_checkpoint(source, upstream, output, tokenizer_dir=tokenizer, overwrite=overwrite))


def main():
    """Entry point: bad input is one line on stderr and exit code 2."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("m2bert_hub").setLevel(logging.INFO)
    try:
        app()
    except (ValueError, OSError, SafetensorError, StrictDataclassError) as error:
        typer.echo(f"m2bert: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
