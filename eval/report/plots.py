"""The plots of a report, as <svg> elements that take the colour of the text around them."""

import hashlib
import re
from collections.abc import Iterable
from contextlib import contextmanager
from io import StringIO
from typing import NamedTuple

from .blocks import Plot

# Okabe and Ito's colours, which colour-blind readers can tell apart; their yellow is too pale on white.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
INK, FAINT = "#010203", "#040506"  # stand for the colours of the page
WIDTH_INCHES = 8.5
LONGEST_NAME = 100  # characters of a plot's name: a file's may have 255 bytes


class CostPoint(NamedTuple):
    """A system's quality (nDCG@10 in points) and cost (seconds a document)."""

    system: str
    seconds: float
    score: float
    group: str


@contextmanager
def figure(height_inches: float):
    """A figure and its axes in the report's style."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "font.size": 9, "text.parse_math": False, "svg.fonttype": "path",
        "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.edgecolor": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.facecolor": "none",
        "legend.frameon": False, "figure.facecolor": "none", "lines.linewidth": 1.6,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        made = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        yield made, made.subplots()


def as_plot(name: str, made, caption: str) -> Plot:
    """The figure as one <svg> element. Its name becomes part of a file's: a long one is cut, with a digest of all."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if len(slug) > LONGEST_NAME:
        slug = f"{slug[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    buffer = StringIO()
    made.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return Plot(slug, svg.replace(INK, "currentColor").replace(FAINT, "var(--line)"), caption)


def plain_number(value: float, _: int | None = None) -> str:
    """A tick of a logarithmic axis."""
    return f"{value:,.0f}" if value >= 1 else f"{value:.12f}".rstrip("0")


def cost_plot(name: str, found: list[CostPoint], device: str, level: tuple[str, float] | None) -> Plot:
    """Quality over cost. Labels stand in a column beside the plot, spread so that none covers another.

    Args:
        level: name and score of a system without a measured time, drawn as a line.
    """
    groups = list(dict.fromkeys(point.group for point in found))
    with figure(max(3.8, 0.21 * len(found) + 1.6)) as (made, axes):
        for index, group in enumerate(groups):
            members = [point for point in found if point.group == group]
            axes.scatter(
                [point.seconds for point in members], [point.score for point in members], s=34, zorder=3, label=group,
                color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
            )  # fmt: skip
        front = pareto_front(found)
        axes.step(
            [point.seconds for point in front], [point.score for point in front],
            where="post", color=INK, linewidth=0.9, zorder=2, label="nothing cheaper is better",
        )  # fmt: skip
        if level:
            axes.axhline(level[1], color=INK, linestyle=":", linewidth=1, label=f"{level[0]} (time not measured)")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(plain_number)
        axes.margins(x=0.06, y=0.08)
        axes.set_xlabel(f"seconds for one document on {device} (logarithmic)")
        axes.set_ylabel("nDCG@10 (points)")
        _label_beside(axes, found)
        made.legend(loc="outside lower left", ncols=2, fontsize=8)
        caption = (
            "Quality over cost: further left is cheaper, further up is better. The time is that of embedding a "
            "document; BM25's part in a hybrid is not in it, nor what a query costs, such as a reranker's second step."
        )
        return as_plot(name, made, caption)


def pareto_front(found: Iterable[CostPoint]) -> list[CostPoint]:
    """The systems than which no cheaper one is at least as good, cheapest first."""
    front: list[CostPoint] = []
    for point in sorted(found, key=lambda point: (point.seconds, -point.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def _label_beside(axes, found: list[CostPoint]) -> None:
    """Names in a column to the right of the axes, tied to their points by thin lines."""
    low, high = axes.get_ylim()
    ordered = sorted(found, key=lambda point: (point.score, point.seconds))
    places = spread([(point.score - low) / (high - low) for point in ordered], 1 / max(len(found) + 1, 16))
    for point, place in zip(ordered, places, strict=True):
        axes.annotate(
            point.system, (point.seconds, point.score), xytext=(1.03, place), textcoords="axes fraction",
            va="center", fontsize=8, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.35, "linewidth": 0.5, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(places: list[float], gap: float) -> list[float]:
    """Ascending places moved apart to at least `gap`, as little as possible, and inside 0 to 1 where there is room."""
    import numpy as np
    from sklearn.isotonic import isotonic_regression

    steps = gap * np.arange(len(places))  # without them, "at least a gap apart" is "not descending"
    return (isotonic_regression(np.array(places) - steps, y_min=0, y_max=max(0, 1 - steps[-1])) + steps).tolist()
