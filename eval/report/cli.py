"""`m2bert report`: result files become a page.

By itself: python -m m2bert.eval.report.cli report results/*.json --output report.html
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from m2bert.command import CommandGroup
from m2bert.terminal import shown

app = typer.Typer(cls=CommandGroup, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
FORMATS = (".md", ".html")


@app.callback()
def main() -> None:
    """Reports from result files."""


@app.command("report")
def report_command(
    results: Annotated[list[Path], typer.Argument(help="JSON files of `m2bert eval` and `m2bert analyse`.")],
    output: Annotated[list[Path], typer.Option(help="File to write, .html or .md; repeat for both.")],
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "M2-BERT: evaluation",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Set results beside the paper's tables, as Markdown or as one HTML page.

    A file that cannot be read is named, on stderr and in the report, and the others are rendered.
    """
    from m2bert.files import write_atomically

    from ..results import free_output
    from .page import build_sections, plot_folder, report_files  # slow, not for --help
    from .results import load_results

    for path in output:
        if path.suffix not in FORMATS:
            raise ValueError(f"output {path} is no report; its name must end in {' or '.join(FORMATS)}")
        free_output(path, overwrite)
        if path.suffix == ".md":
            free_output(plot_folder(path) / "plot.svg", overwrite=True)
    records, problems, notes = load_results(results)
    for line in [*problems, *notes]:
        typer.echo(f"m2bert report: warning: {shown(line)}", err=True)
    if not records:
        raise ValueError("none of the files holds a result; write them with `m2bert eval` or `m2bert analyse`")
    sections = build_sections(records, problems, notes)
    texts = {}
    for path in output:  # all, before the first is written
        texts |= report_files(path, sections, title)
    for path, text in texts.items():
        write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))
        if path in output:
            typer.echo(f"written to {shown(path)}")


if __name__ == "__main__":
    app()
