"""`m2bert report`: result files become a page. What is unreadable or doubled is named, the rest is used.

By itself: python -m m2bert.eval.report.cli report results/*.json --output report.html
"""

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from m2bert.files import write_atomically
from m2bert.records import check_record, free_output, read_results
from m2bert.terminal import CommandGroup, nearest, one_line, shown

from . import paper
from .tables import shorten

app = typer.Typer(cls=CommandGroup, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
FORMATS = (".md", ".html")
# The fields that tell a record from others of its kind.
IDENTITY = {
    "retrieval": ("system", "task", "split", "data_fingerprint"),
    "mteb": ("system", "task", "split"),
    "needle": ("system", "task", "split", "passages", "queries", "seed"),
    "lengths": ("task", "split", "data_fingerprint", "tokenizer"),
    "spans": ("task", "split", "data_fingerprint"),
    "clusters": ("system", "sources"),
    "efficiency": ("system", "device", "dtype", "threads"),
    "overlap": ("test", "train"),
}


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
    from .page import build_sections, plot_folder, report_files  # slow, not for --help

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


class Results(NamedTuple):
    """Records by kind, and a line each for what could not be used (`problems`) and what readers must know (`notes`)."""

    records: dict[str, list[dict]]
    problems: list[str]
    notes: list[str]


def load_results(paths: list[Path]) -> Results:
    """Read all records of result files. Of records with the same identity keep the one of the later date.

    Nothing here raises. A note names each record that a later one replaced or whose row the paper does not have, and
    each name that several models share.
    """
    problems: list[str] = []
    notes: list[str] = []
    kept: dict[tuple, tuple[dict, Path]] = {}
    for path in paths:
        for record in _usable(path, problems):
            key = (record["kind"], *(repr(record.get(name)) for name in IDENTITY[record["kind"]]))
            known, known_path = kept.get(key, (record, path))
            older = (record.get("date") or "") < (known.get("date") or "")
            kept[key] = (known, known_path) if older else (record, path)
            if known != record:
                notes.append(f"{_named(record)}: measured twice, in {known_path} and {path}; {kept[key][1]} wins")
    records = defaultdict(list)
    for record, _ in kept.values():
        records[record["kind"]].append(record)
        name = record.get("paper_row")
        if name and name not in paper.row_names():
            notes.append(f"{_named(record)}: the paper has no row {name!r}{nearest(name, paper.row_names())}")
    return Results(
        dict(records), problems, notes + _shared_names(records.get("retrieval", []) + records.get("mteb", []))
    )


def _shared_names(records: list[dict]) -> list[str]:
    """Return a line for each name under which different models were measured, whose scores would be averaged."""
    models = defaultdict(set)
    for record in records:
        models[record["system"]].add(record.get("model_fingerprint") or "not stated")
    return [
        f"{system}: its records are of {len(found)} models or package versions (fingerprints "
        f"{', '.join(sorted(map(shorten, found)))}), so averages over tasks mix them; "
        "measure all with one, or name them apart"
        for system, found in models.items()
        if len(found) > 1
    ]


def _named(record: dict) -> str:
    """Return a record's kind, system, task and split, as far as it has them."""
    return ", ".join(record[name] for name in ("kind", "system", "task", "split") if isinstance(record.get(name), str))


def _usable(path: Path, problems: list[str]) -> list[dict]:
    try:
        records = read_results(path)
    except ValueError as error:
        problems.append(one_line(error))
        return []
    if not records:
        problems.append(f"results {path} hold no records; write them with `m2bert eval`")
    usable = []
    for index, record in enumerate(records):
        try:
            usable.append(_readable(check_record(record, f"record {index} of {path} is left out")))
        except ValueError as error:
            problems.append(one_line(error))
    return usable


def _readable(value: object) -> object:
    """Return a part of a record with its texts on one line each and without control characters."""
    if isinstance(value, str):
        return shown(" ".join(value.split()))
    if isinstance(value, list):
        return [_readable(entry) for entry in value]
    if isinstance(value, dict):
        return {shown(key): _readable(entry) for key, entry in value.items()}
    return value


if __name__ == "__main__":
    app()
