"""A report from result records: every table of the paper that has a result, beside what the paper prints.

It is written as Markdown. The HTML page is made from that Markdown, with its plots in it, and needs nothing but itself.
"""

import base64
import html
import re
from importlib.resources import files
from itertools import count
from pathlib import Path
from string import Template
from urllib.parse import quote

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML

from ..comparison import by_task
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
from .retrieval import examples_section, length_section, overlap_section, place_section, task_sections
from .tables import Plot, Section, Sources, escape

INTRODUCTION = (
    "Scores are nDCG@10 in points (x 100) unless a column says otherwise, with 95 % bootstrap intervals over queries. "
    "Systems are ranked only within their group: lexical, one or several vectors a document, hybrid; zero-shot or "
    "fine-tuned on the task. Only scores on the very same data (by fingerprint) are compared. A number in brackets "
    "leads to the table of sources at the end: model, data, versions and date of that row."
)
SOURCES = "#sources"  # where the numbers in brackets lead


def build_sections(records: dict[str, list[dict]], problems: list[str], notes: list[str]) -> list[Section]:
    """Return all sections that the records have something for, in the order of a page.

    Args:
        records: by their kind.
        problems: what could not be read, a line each.
        notes: what a reader should know about the files, a line each.
    """
    of = {kind: records.get(kind, []) for kind in ("retrieval", "mteb", "needle", "overlap", "lengths", "spans")}
    sources, tasks = Sources(), by_task(of["retrieval"])
    found = [
        Section("How to read this", [INTRODUCTION, f"The paper: {paper.printed()['source']}"]),
        Section("Results that could not be read", problems) if problems else None,
        Section("Notes on the results", notes) if notes else None,
        *task_sections(tasks, sources),
        length_section(tasks, sources),
        place_section(tasks, sources),
        overlap_section(of["overlap"], of["retrieval"]),
        needle_section(of["needle"], sources),
        *benchmark_sections(scores_of(of["retrieval"], of["mteb"]), sources),
        other_section(of["mteb"], sources),
        lengths_section(of["lengths"]),
        spans_section(of["spans"]),
        efficiency_section(records.get("efficiency", []), sources),
        clusters_section(records.get("clusters", []), sources),
        texts_section(of["lengths"]),
        examples_section(tasks),
    ]
    sections = [section for section in found if section]
    answered = {table for section in sections for table in section.tables}
    missing = [
        f"{table} ({paper.table(table)['title']})" for table in paper.printed()["tables"] if table not in answered
    ]
    text = "; ".join(missing) + "." if missing else "None."
    sections += [Section("Tables of the paper not measured here", [text]), sources.section()]
    names: set[str] = set()
    return [
        section._replace(
            blocks=[b._replace(name=unique(b.name, names)) if isinstance(b, Plot) else b for b in section.blocks]
        )
        for section in sections
    ]


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
    """Return one HTML page of a report's Markdown.

    Args:
        plots: {file name: SVG}, embedded in place of the files.
    """
    env = {"plots": plots, "anchors": set(), "contents": [], "folded": False, "section": ""}
    parser = MarkdownIt("commonmark", {"html": False}, renderer_cls=PageRenderer).enable("table")
    body = parser.render(markdown, env) + "</details>\n" * env["folded"]
    template = files("m2bert.eval.report").joinpath("templates", "page.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=html.escape(title), contents="\n".join(env["contents"]), body=body)


class PageRenderer(RendererHTML):
    """Renders the Markdown of a report: headings are anchors, what is below one of level 4 is folded, tables scroll,
    plots are embedded, and numbers in brackets lead to their row in the table of sources."""

    def heading_open(self, tokens, index, options, env) -> str:
        """Begin a heading, which ends what is folded."""
        end, tag = "</details>\n" * env["folded"], tokens[index].tag
        env["folded"] = tag == "h4"
        if env["folded"]:
            return f"{end}<details>\n<summary>"
        text = self.renderInlineAsText(tokens[index + 1].children, options, env)
        env["section"] = unique(re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section", env["anchors"])
        link = f'<a href="#{env["section"]}">'
        env["contents"].append(f'<li class="{tag}">{link}{html.escape(text)}</a></li>')
        return f'{end}<{tag} id="{env["section"]}">{link}'

    def heading_close(self, tokens, index, options, env) -> str:
        """End a heading."""
        return "</summary>\n" if env["folded"] else f"</a></{tokens[index].tag}>\n"

    def table_open(self, tokens, index, options, env) -> str:
        """Begin a table in a box that scrolls."""
        return '<div class="box" tabindex="0" role="region" aria-label="Table"><table>\n'

    def table_close(self, tokens, index, options, env) -> str:
        """End a table and its box."""
        return "</table></div>\n"

    def td_open(self, tokens, index, options, env) -> str:
        """Begin a cell; the first of a row in the table of sources can be led to."""
        if f"#{env['section']}" == SOURCES and tokens[index - 1].type == "tr_open":
            tokens[index].attrSet("id", f"source.{tokens[index + 1].content}")
        return self.renderToken(tokens, index, options, env)

    def link_open(self, tokens, index, options, env) -> str:
        """Begin a link; every link of a report's text leads to a row of the table of sources."""
        return f'<a class="source" href="#source.{tokens[index + 1].content}">['

    def link_close(self, tokens, index, options, env) -> str:
        """End a link."""
        return "]</a>"

    def image(self, tokens, index, options, env) -> str:
        """Embed a plot."""
        svg = env["plots"][tokens[index].attrs["src"].rpartition("/")[2]]
        source = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
        caption = self.renderInlineAsText(tokens[index].children, options, env)
        return f'<img alt="{html.escape(caption)}" src="{source}">'


def unique(name: str, taken: set[str]) -> str:
    """Return a name, numbered if it is taken already, and take it."""
    numbered = (f"{name}-{number}" for number in count(2))
    found = name if name not in taken else next(other for other in numbered if other not in taken)
    taken.add(found)
    return found
