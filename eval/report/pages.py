"""A report from result files: every table of the paper that has a result, beside what the paper prints.

Markdown, or one HTML page that needs nothing but itself. Plots of a Markdown report lie in a folder beside it.
"""

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib.resources import files
from itertools import count
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from m2bert.files import write_atomically

from ..statistics import by_task
from . import paper
from .analyses import (
    clusters_section,
    efficiency_section,
    lengths_section,
    needle_section,
    spans_section,
    texts_section,
)
from .benchmarks import benchmark_sections, other_section, scores_of
from .blocks import Block, Plot, Prose, Section
from .details import examples_section, length_section, overlap_section, place_section
from .groups import paper_table
from .overview import TABLES, DataGroups, in_paper_order, overview_section
from .results import Results
from .sources import Sources
from .tasks import task_section

TEMPLATES = {".md": "report.md.jinja", ".html": "report.html.jinja"}
LINE_COLOUR = "#d0d0d0"  # of grids in the plots of a Markdown report, which no style sheet reaches
INTRODUCTION = (
    "Scores are nDCG@10 in points (x 100) unless a column says otherwise, with 95 % bootstrap intervals over queries. "
    "Systems are ranked only within their group: lexical, one or several vectors a document, hybrid; zero-shot or "
    "fine-tuned on the task. Only scores on the very same data (by fingerprint) are compared. A number in brackets "
    "leads to the table of sources at the end: model, data, versions and date of that row."
)


def build_sections(results: Results) -> list[Section]:
    """All sections that the results have something for, in the order of a page."""
    sources = Sources()
    groups = by_task(results.of("retrieval"))
    retrieval, mteb = results.of("retrieval"), results.of("mteb")
    sections = [
        *_reading(results),
        *_task_sections(groups, sources),
        length_section(groups, sources),
        place_section(groups, sources),
        overlap_section(results.of("overlap"), retrieval),
        needle_section(results.of("needle"), sources),
        *benchmark_sections(scores_of(retrieval, mteb), sources),
        other_section(mteb, sources),
        lengths_section(results.of("lengths")),
        spans_section(results.of("spans")),
        efficiency_section(results.of("efficiency"), sources),
        clusters_section(results.of("clusters"), sources),
        texts_section(results.of("lengths")),
        examples_section(groups),
    ]
    sections = [section for section in sections if section]
    return _with_unique_plots([*sections, _missing(sections), sources.section()])


def render(sections: list[Section], title: str, suffix: str, plots: str = "") -> str:
    """The report as text.

    Args:
        suffix: a key of TEMPLATES.
        plots: folder of the plots, as the Markdown report names it.
    """
    environment = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=suffix == ".html")
    environment.filters |= {"markdown": escape_markdown, "markdown_row": markdown_row, "svg": Markup}
    template = files("m2bert.eval.report").joinpath("templates", TEMPLATES[suffix]).read_text(encoding="utf-8")
    text = environment.from_string(template).render(
        title=title, sections=list(zip(_anchors(sections), sections, strict=True)), plots=plots
    )
    return text.strip() + "\n"


def report_files(output: Path, sections: list[Section], title: str) -> dict[Path, str]:
    """Return the files of a report in the format that the output's ending names, `.md` or `.html`, itself the last."""
    folder = plot_folder(output)
    plots = [block for section in sections for block in section.blocks if isinstance(block, Plot)]
    files = {folder / f"{plot.name}.svg": _file(plot.svg) for plot in plots if output.suffix == ".md"}
    return files | {output: render(sections, title, output.suffix, folder.name)}


def write_files(texts: dict[Path, str]) -> None:
    """Write texts by their paths, each whole."""
    for path, text in texts.items():
        write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))


def plot_folder(output: Path) -> Path:
    """Where the plots of a Markdown report lie."""
    return output.with_name(f"{output.stem}-plots")


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = re.sub(r"([\\`*{}\[\]<>|~$&])", r"\\\1", re.sub(r"[^\S\u00a0]+", " ", text).strip())
    return re.sub(r"(?<!\w)_|_(?!\w)|^(?=[#+-]\s)", lambda match: "\\" + match[0], text)


def markdown_row(cells: list[str], widths: list[int], text_columns: int) -> str:
    """One line of a table: words to the left, numbers to the right."""
    padded = [
        cell.ljust(width) if column < text_columns else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def _task_sections(groups: DataGroups, sources: Sources) -> list[Section]:
    """The two benchmarks of the paper with their tasks, then all other tasks."""
    names = Counter((task, split) for task, split, _ in groups)
    sections = []
    for table in TABLES:
        chosen = in_paper_order(table, groups)
        if chosen:
            sections.append(overview_section(table, chosen))
            sections += [task_section(groups[key], sources, names[key[:2]] > 1) for key in chosen]
    others = sorted(key for key, records in groups.items() if paper_table(records[0]) is None)
    if others:
        sections.append(Section("Other retrieval tasks", [Prose("Tasks that the paper's main tables do not have.")]))
        sections += [task_section(groups[key], sources, names[key[:2]] > 1) for key in others]
    return sections


def _reading(results: Results) -> list[Section]:
    """How to read the report, and what is wrong with the files behind it."""
    sections = [Section("How to read this", [Prose(INTRODUCTION), Prose(f"The paper: {paper.citation()}")])]
    if results.problems:
        blocks = [Prose(problem) for problem in results.problems]
        sections.append(Section("Results that could not be read", blocks))
    if results.notes:
        sections.append(Section("Notes on the results", [Prose(note) for note in results.notes]))
    return sections


def _missing(sections: list[Section]) -> Section:
    answered = {table for section in sections for table in section.tables}
    missing = [f"{table} ({paper.title(table)})" for table in paper.table_numbers() if table not in answered]
    return Section("Tables of the paper not measured here", [Prose("; ".join(missing) + "." if missing else "None.")])


def _anchors(sections: list[Section]) -> list[str]:
    """A name for every heading, each once."""
    return _unique([section.slug for section in sections])


def _with_unique_plots(sections: list[Section]) -> list[Section]:
    """The sections with plots none of which is called as another, and whose ids begin with the plot's name."""
    plots = [block for section in sections for block in section.blocks if isinstance(block, Plot)]
    names = iter(_unique([plot.name for plot in plots]))

    def named(block: Block) -> Block:
        if not isinstance(block, Plot):
            return block
        name = next(names)
        return replace(block, name=name, svg=re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", block.svg))

    return [replace(section, blocks=[named(block) for block in section.blocks]) for section in sections]


def _unique(names: list[str]) -> list[str]:
    """The names in their order; one that is there already gets a number."""
    taken: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in count(2))
        taken.append(name if name not in taken else next(other for other in numbered if other not in taken))
    return taken


def _file(svg: str) -> str:
    """A plot that stands alone: black on white, whatever page shows it."""
    svg = svg.replace("currentColor", "black").replace("var(--line)", LINE_COLOUR)
    return re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', svg, count=1)
