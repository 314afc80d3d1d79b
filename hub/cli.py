"""The commands `m2bert export`, `m2bert convert` and `m2bert push`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from m2bert.files import read_json
from m2bert.terminal import CommandGroup

from .outputs import check_output

app = typer.Typer(cls=CommandGroup, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
Output = Annotated[Path, typer.Option(help="Folder to make.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it is not empty.")]


@app.command()
def export(
    model: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Checkpoint folder.")],
    output: Output,
    repo: Annotated[str | None, typer.Option(help="org/name on the Hub, for the card.")] = None,
    results: Annotated[
        list[Path] | None, typer.Option(exists=True, help="Scores of this checkpoint by `m2bert eval`.")
    ] = None,
    about: Annotated[
        Path | None, typer.Option(help="YAML for the card: license, language, data, limits, text.")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write onnx/model.onnx, for other runtimes.")] = False,
    overwrite: Overwrite = False,
):
    """Write a complete Hub folder from a checkpoint."""
    from .card import read_about
    from .client import check_repo_id

    if onnx and (missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]):
        raise ValueError(f"--onnx needs {', '.join(missing)}; pip install 'm2bert[onnx]'")
    check_output(output, overwrite)
    if repo is not None:
        check_repo_id(repo)
    if about is not None:
        read_about(about)
    from transformers.utils.logging import disable_progress_bar

    from .folder import export_checkpoint

    disable_progress_bar()
    typer.echo(export_checkpoint(model, output, overwrite=overwrite, repository=repo, results=results, about=about,
                                 onnx=onnx))  # fmt: skip


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A model of the research code: Hub id (org/name), folder or file.")],
    output: Output,
    config: Annotated[
        Path | None, typer.Option(help="The original's options; by default config.json beside it.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder, vocab.txt or Hub id; by default the source's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id; main by default.")] = None,
    file: Annotated[str | None, typer.Option(help="The weights, where there are several.")] = None,
    padding: Annotated[
        Literal["visible", "masked"],
        typer.Option(help="visible: the original's vectors; masked: vectors that padding cannot change."),
    ] = "visible",
    overwrite: Overwrite = False,
):
    """Convert a model of the original research code to a Hub folder, and check it against the original's formulas."""
    from .client import check_repo_id

    check_output(output, overwrite)
    if config is not None:
        read_json(config)
    if not Path(source).exists():
        check_repo_id(source, "the source, no file or folder here,")
    from transformers.utils.logging import disable_progress_bar

    from .convert.run import convert_source

    disable_progress_bar()
    typer.echo(
        convert_source(source, output, config_file=config, tokenizer=tokenizer, revision=revision, file=file,
                       padding=padding, overwrite=overwrite)
    )  # fmt: skip


@app.command()
def push(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of a model, of an adapter or of a Space.")
    ],
    repo: Annotated[str, typer.Option(help="org/name on the Hub.")],
    dry_run: Annotated[bool, typer.Option(help="Show what would be sent, or send it.")] = True,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is made.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Offer it as a pull request to what exists.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, made if it is missing; main by default.")] = None,
):
    """Push a folder to the Hub as one commit; by default only show what would be sent."""
    from .client import check_repo_id

    check_repo_id(repo)
    from .push import carry_out, describe, describe_commit, plan_push

    plan = plan_push(folder, repo, private=private, create_pr=create_pr, revision=revision)
    typer.echo(describe(plan))
    if dry_run:
        typer.echo("nothing was sent; add --no-dry-run to send it")
        return
    try:
        commit = carry_out(plan)
    finally:
        typer.echo(err=True)  # the client may have left a progress bar on this line
    typer.echo(describe_commit(plan, commit) if commit else "nothing to send: the repository holds these files already")
