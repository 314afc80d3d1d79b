"""`m2bert report`: result files become a page, with every table of the paper that has a result beside what the paper
prints. What is unreadable or doubled is named, the rest is used.

The report is written as Markdown. The HTML page is made from that Markdown, with its plots in it, and needs nothing but
itself. By itself: python -m m2bert.eval.report.page report results/*.json --output report.html
"""

import base64
import html
import re
from collections import defaultdict
from functools import partial
from importlib.resources import files
from itertools import chain, count
from pathlib import Path
from string import Template
from typing import Annotated, NamedTuple
from urllib.parse import quote

import typer
from markdown_it import MarkdownIt

from m2bert.files import write_atomically
from m2bert.records import check_record, free_output, read_results
from m2bert.terminal import CommandGroup, nearest, one_line, shown

from ..statistics import by_task
from . import others, retrieval
from .tables import Plot, Section, Sources, escape, paper_table, paper_values, read_paper, shorten

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
INTRODUCTION = (
    "Scores are nDCG@10 in points (x 100) unless a column says otherwise, with 95 % bootstrap intervals over queries. "
    "Systems are ranked only within their group: lexical, one or several vectors a document, hybrid; zero-shot or "
    "fine-tuned on the task. Only scores on the very same data (by fingerprint) are compared. A number in brackets "
    "leads to the table of sources at the end: model, data, versions and date of that row."
)


@app.callback()
def main() -> None:
    """Make reports from result files."""


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
    records, models = defaultdict(list), defaultdict(set)
    rows = {row for table in read_paper()["tables"] for row in paper_values(table)}
    for record, _ in kept.values():
        records[record["kind"]].append(record)
        name = record.get("paper_row")
        if name and name not in rows:
            notes.append(f"{_named(record)}: the paper has no row {name!r}{nearest(name, rows)}")
        if record["kind"] in ("retrieval", "mteb"):
            models[record["system"]].add(record.get("model_fingerprint") or "not stated")
    notes += [
        f"{system}: its records are of {len(found)} models or package versions (fingerprints "
        f"{', '.join(sorted(map(shorten, found)))}), so averages over tasks mix them; measure all with one, "
        "or name them apart"
        for system, found in models.items()
        if len(found) > 1
    ]
    return Results(dict(records), problems, notes)


def _named(record: dict) -> str:
    """Return a record's kind, system, task and split, as far as it has them."""
    return ", ".join(record[name] for name in ("kind", "system", "task", "split") if isinstance(record.get(name), str))


def _usable(path: Path, problems: list[str]) -> list[dict]:
    """Return the valid records of a file, with their texts on one line; add what is wrong to `problems`."""
    usable, records = [], []
    try:
        records = read_results(path)
        problems += [] if records else [f"results {path} hold no records; write them with `m2bert eval`"]
    except ValueError as error:
        problems.append(one_line(error))
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


def build_sections(records: dict[str, list[dict]], problems: list[str], notes: list[str]) -> list[Section]:
    """Return all sections that the records have something for, in the order of a page. The arguments are `Results`."""
    of, sources = defaultdict(list, records), Sources()
    tasks = by_task(of["retrieval"])
    found = [
        Section("How to read this", [INTRODUCTION, f"The paper: {read_paper()['source']}"]),
        Section("Results that could not be read", problems) if problems else None,
        Section("Notes on the results", notes) if notes else None,
        *retrieval.task_sections(tasks, sources),
        retrieval.length_section(tasks, sources),
        retrieval.place_section(tasks, sources),
        retrieval.overlap_section(of["overlap"], of["retrieval"]),
        others.needle_section(of["needle"], sources),
        *others.benchmark_sections(of["retrieval"], of["mteb"], sources),
        others.other_section(of["mteb"], sources),
        others.lengths_section(of["lengths"]),
        others.spans_section(of["spans"]),
        others.efficiency_section(of["efficiency"], sources),
        others.clusters_section(of["clusters"], sources),
        others.texts_section(of["lengths"]),
        retrieval.examples_section(tasks),
    ]
    sections = [section for section in found if section]
    answered = {table for section in sections for table in section.tables}
    missing = [f"{name} ({paper_table(name)['title']})" for name in read_paper()["tables"] if name not in answered]
    text = "; ".join(missing) + "." if missing else "None."
    sections += [Section("Tables of the paper not measured here", [text]), sources.section()]
    names: set[str] = set()
    for section in sections:
        for place, block in enumerate(section.blocks):
            if isinstance(block, Plot):
                section.blocks[place] = block._replace(name=unique(block.name, names))
    return sections


def report_files(output: Path, sections: list[Section], title: str) -> dict[Path, str]:
    """Return {path: text} of a report, itself last: an `.html` page, or an `.md` file with its plots in a folder."""
    plots = {f"{block.name}.svg": block.svg for s in sections for block in s.blocks if isinstance(block, Plot)}
    if output.suffix == ".html":
        return {output: html_page(title, markdown_text(sections, "plots"), plots)}
    folder = plot_folder(output)
    text = f"# {escape(title)}\n\n{markdown_text(sections, folder.name)}"
    return {folder / name: svg for name, svg in plots.items()} | {output: text}


def plot_folder(output: Path) -> Path:
    """Return the folder in which the plots of a Markdown report lie."""
    return output.with_name(f"{output.stem}-plots")


def markdown_text(sections: list[Section], folder: str) -> str:
    """Return sections as Markdown that takes its plots from `folder`."""
    parts: list[str] = []
    for section in sections:
        parts.append(f"{'#' * section.level} {escape(section.title)}")
        for block in section.blocks:
            if isinstance(block, Plot):
                parts.append(f"![{escape(block.caption)}]({quote(folder)}/{block.name}.svg)")
            parts.append(escape(block.caption if isinstance(block, Plot) else block))
    return "\n\n".join(parts) + "\n"


def html_page(title: str, markdown: str, plots: dict[str, str]) -> str:
    """Return one HTML page of a report's Markdown, with its plots, {file name: SVG}, embedded.

    Headings are anchors, what is below one of level 4 is folded, and links to sources lead to their rows.
    """
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    names: set[str] = set()
    contents = []

    def anchored(heading: re.Match) -> str:
        tag, text = heading.groups()
        name = unique(re.sub(r"[^a-z0-9]+", "-", html.unescape(text).lower()).strip("-") or "section", names)
        link = f'<a href="#{name}">{text}</a>'
        contents.append(f'<li class="{tag}">{link}</li>')
        return f'<{tag} id="{name}">{link}</{tag}>'

    def embedded(image: re.Match) -> str:
        source = base64.b64encode(plots[image[1]].encode()).decode()
        return f'<img alt="{image[2]}" src="data:image/svg+xml;base64,{source}">'

    body = re.sub(r"<(h[23])>(.*)</h[23]>", anchored, body)
    folded = r"<details>\n<summary>\1</summary>\n\2</details>\n"
    body = re.sub(r"<h4>(.*?)</h4>\n(.*?)(?=<h[2-4]|\Z)", folded, body, flags=re.DOTALL)
    body = re.sub(r'<img src="[^"]*/([^"]*)" alt="([^"]*)" />', embedded, body)
    before, sources, after = body.partition('<h2 id="sources">')
    body = before + sources + re.sub(r"<tr>\n<td>(\d+)</td>", r'<tr>\n<td id="source.\1">\1</td>', after)
    body = re.sub(r'<a href="#sources">(\d+)</a>', r'<a class="source" href="#source.\1">[\1]</a>', body)
    box = '<div class="box" tabindex="0" role="region" aria-label="Table"><table>'
    body = body.replace("<table>", box).replace("</table>", "</table></div>")
    template = files("m2bert.eval.report").joinpath("templates", "page.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=html.escape(title), contents="\n".join(contents), body=body)


def unique(name: str, taken: set[str]) -> str:
    """Return a name, numbered if it is taken already, and take it."""
    found = next(other for other in chain([name], (f"{name}-{n}" for n in count(2))) if other not in taken)
    taken.add(found)
    return found


if __name__ == "__main__":
    app()
