"""The plots of a report, as SVG files: quality over cost, and Figures 2, 3, 5, 6 and Table 5 of the paper."""

import re
from contextlib import contextmanager
from io import StringIO
from typing import NamedTuple

from .tables import Plot

# Okabe and Ito's colors, which color-blind readers can tell apart; their yellow is too pale on white.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
STYLE = {
    "font.size": 9, "text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": "m2bert",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#d0d0d0",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.6,
}  # fmt: skip
INK = "black"
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
    """Yield a figure and its axes in the report's style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        yield made, made.subplots()


def as_plot(name: str, made, caption: str, legend: bool = True) -> Plot:
    """Return a figure as a plot, with the legend below the axes. Its name becomes a file's, so a long one is cut."""
    if legend:
        made.legend(loc="outside lower left", ncols=2, fontsize=8)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST_NAME]
    buffer = StringIO()
    made.savefig(buffer, format="svg", metadata={"Date": None})
    return Plot(slug, buffer.getvalue(), caption)


def look(index: int) -> dict:
    """Return the color and the marker of the system or group with this number."""
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def plain_number(value: float, _: int | None = None) -> str:
    """Return the label of a tick of a logarithmic axis."""
    return f"{value:,.0f}" if value >= 1 else f"{value:.12f}".rstrip("0")


def cost_plot(name: str, found: list[CostPoint], device: str, level: tuple[str, float] | None) -> Plot:
    """Plot quality over cost, with the names of the systems in a column beside the axes.

    Args:
        level: name and score of a system without a measured time, drawn as a line.
    """
    with figure(max(3.8, 0.21 * len(found) + 1.6)) as (made, axes):
        for index, group in enumerate(dict.fromkeys(point.group for point in found)):
            members = [(point.seconds, point.score) for point in found if point.group == group]
            axes.scatter(*zip(*members, strict=True), s=34, zorder=3, label=group, **look(index))
        front = [(point.seconds, point.score) for point in pareto_front(found)]
        front_look = {"where": "post", "color": INK, "linewidth": 0.9, "zorder": 2}
        axes.step(*zip(*front, strict=True), label="nothing cheaper is better", **front_look)
        if level:
            axes.axhline(level[1], color=INK, linestyle=":", linewidth=1, label=f"{level[0]} (time not measured)")
        axes.set(xscale="log", ylabel="nDCG@10 (points)", xlabel=f"seconds for one document on {device} (logarithmic)")
        axes.xaxis.set_major_formatter(plain_number)
        axes.margins(x=0.06, y=0.08)
        low, high = axes.get_ylim()
        ordered = sorted(found, key=lambda point: (point.score, point.seconds))
        places = spread([(point.score - low) / (high - low) for point in ordered], 1 / max(len(found) + 1, 16))
        for point, place in zip(ordered, places, strict=True):
            axes.annotate(
                point.system, (point.seconds, point.score), xytext=(1.03, place), textcoords="axes fraction",
                va="center", fontsize=8, annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": INK, "alpha": 0.35, "linewidth": 0.5, "relpos": (0, 0.5)},
            )  # fmt: skip
        caption = (
            "Quality over cost: further left is cheaper, further up is better. The time is that of embedding a "
            "document; BM25's part in a hybrid is not in it, nor what a query costs, such as a reranker's second step."
        )
        return as_plot(name, made, caption)


def pareto_front(found: list[CostPoint]) -> list[CostPoint]:
    """Return the Pareto front, cheapest first."""
    front: list[CostPoint] = []
    for point in sorted(found, key=lambda point: (point.seconds, -point.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def spread(places: list[float], gap: float) -> list[float]:
    """Move ascending places apart to at least `gap`, as little as possible, and inside 0 to 1 where there is room."""
    import numpy as np
    from sklearn.isotonic import isotonic_regression

    steps = gap * np.arange(len(places))  # without them, "at least a gap apart" is "not descending"
    return (isotonic_regression(np.array(places) - steps, y_min=0, y_max=max(0, 1 - steps[-1])) + steps).tolist()


def needle_plot(title: str, records: list[dict], theirs: dict[str, float]) -> Plot:
    """Plot Figure 2: nDCG@10 by the answer's place, with 95 % intervals, and the paper's curve {place: points}."""
    with figure(4.4) as (made, axes):
        for index, record in enumerate(records):
            rows = sorted(record["rows"], key=lambda entry: entry["position"])
            places, scores = zip(*((entry["position"], 100 * entry["ndcg_at_10"]) for entry in rows), strict=True)
            axes.plot(places, scores, label=record["system"], markersize=4, **look(index))
            known = [entry for entry in rows if entry.get("interval_95")]
            low, high = ([100 * entry["interval_95"][side] for entry in known] for side in (0, 1))
            color = look(index)["color"]
            axes.fill_between([entry["position"] for entry in known], low, high, color=color, alpha=0.15, linewidth=0)
        if theirs:
            label = "M2-BERT-32k in the paper (Natural Questions)"
            axes.plot([*map(int, theirs)], [*theirs.values()], color=INK, linestyle="--", linewidth=1.2, label=label)
        axes.set(ylim=(0, 102), xlabel="passages before the one that answers", ylabel="nDCG@10 (points)")
        return as_plot(f"needle {title}", made, f"{title}. Shaded: 95 % intervals over queries.")


def length_plot(records: list[dict]) -> Plot:
    """Plot Figures 5 and 6: how the documents of each task spread over lengths, one strip a task."""
    strips = sorted(records, key=lambda record: record["documents"]["median_tokens"])
    with figure(0.75 * len(strips) + 1.3) as (made, axes):
        shortest = []
        for index, documents in enumerate(record["documents"] for record in strips):
            counts, edges = documents["histogram"]["counts"], documents["histogram"]["edges"]
            heights = [index + 0.85 * count / (max(counts) or 1) for count in counts]
            logarithmic = [max(edge, 1) for edge in edges]  # zero has no place on the axis
            axes.stairs(heights, logarithmic, baseline=index, fill=True, color=look(index)["color"], alpha=0.75)
            axes.plot([documents["median_tokens"]] * 2, [index, index + 0.9], color=INK, linewidth=1.2)
            shortest.append(next((max(2, edge) for edge, count in zip(edges, counts, strict=False) if count), 2))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(plain_number)
        axes.tick_params(axis="x", labelrotation=30)
        axes.set(xlim=(min(shortest) / 2, None), xlabel="tokens of a document (logarithmic)")
        axes.set_yticks(range(len(strips)), [f"{record['task']}, {record['split']}" for record in strips])
        caption = "Lengths of documents. Each strip has its own height; the upright line is the median."
        return as_plot("lengths", made, caption, legend=False)


def efficiency_plot(machine: str, records: list[dict]) -> Plot:
    """Plot Table 5: seconds to encode by tokens, both logarithmic."""
    with figure(4.4) as (made, axes):
        for index, record in enumerate(records):
            curve = sorted((entry["tokens"], entry["encode_seconds"]) for entry in record["rows"])
            axes.plot(*zip(*curve, strict=True), label=record["system"], markersize=5, **look(index))
        lengths = sorted({entry["tokens"] for record in records for entry in record["rows"]})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain_number)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()
        axes.set(xlabel="tokens (logarithmic)", ylabel="seconds to encode (logarithmic)")
        return as_plot(f"efficiency {machine}", made, f"Seconds to encode one text on {machine}, without tokenizing.")


def cluster_plot(record: dict) -> Plot:
    """Plot Figure 3: each text a point, colored by where it comes from."""
    with figure(5.2) as (made, axes):
        for index, name in enumerate(record["sources"]):
            xs, ys = ([point[axis] for point in record["points"] if point[2] == index] for axis in (0, 1))
            axes.scatter(xs, ys, s=18, label=name, linewidths=0, **look(index))
        axes.set_aspect("equal", adjustable="datalim")
        axes.set(xticks=[], yticks=[])
        made.legend(loc="outside right upper", fontsize=8)
        caption = f"{record['system']}: t-SNE of its vectors, a point a text."
        return as_plot(f"clusters {record['system']}", made, caption, legend=False)
