"""Time against length, one panel per device and mode, logarithmic on both axes, every line labelled at its end."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import math  # noqa: E402

from command import BadArgument  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator  # noqa: E402

OURS, ORIGINAL = "#c1272d", "#1a1a1a"
OTHERS = ["#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f"]
STYLES = {"bfloat16": "-", "float16": ":", "float32": (0, (5, 2))}
LABEL_HEIGHT = 0.045  # of a panel: labels stand at least this far apart
DEVICES = {"cpu": "CPU", "cuda": "GPU"}


def draw(panels: dict[tuple[str, str], dict], path: Path) -> None:
    """Write the figure.

    Args:
        panels: (device, mode) to series of (arm, dtype) to records by length.
    """
    panels = {key: lines for key, lines in panels.items() if any(len(records) > 1 for records in lines.values())}
    if not panels:
        raise BadArgument("nothing to plot: no arm was measured at two lengths; give records of forward.py")
    figure, axes = plt.subplots(1, len(panels), figsize=(7.5 * len(panels), 6), squeeze=False)
    names = {arm for lines in panels.values() for arm, _ in lines}
    others = sorted(name for name in names if not name.startswith("ours") and name != "original")
    colours = dict(zip(others, (OTHERS[i % len(OTHERS)] for i in range(len(others))), strict=True))
    for axis, ((device, mode), lines) in zip(axes[0], panels.items(), strict=True):
        _panel(axis, lines, colours)
        first = next(iter(next(iter(lines.values())).values()))
        threads = f", {first['threads']} thread{'s' if first['threads'] > 1 else ''}" if device == "cpu" else ""
        axis.set_title(f"{DEVICES[device]}, {mode}, one text\n{first['processor']}{threads}", fontsize=10, loc="left")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis, lines: dict, colours: dict) -> None:
    ends = []
    for (arm, dtype), records in lines.items():
        colour = OURS if arm.startswith("ours") else ORIGINAL if arm == "original" else colours[arm]
        lengths, seconds = list(records), [record["seconds"] for record in records.values()]
        width = 2.4 if arm.startswith("ours") else 1.4
        axis.plot(lengths, seconds, linestyle=STYLES[dtype], color=colour, linewidth=width, marker="o", markersize=3)
        ends.append((lengths[-1], seconds[-1], f"{arm} {dtype}", colour))
    lengths = sorted({length for records in lines.values() for length in records})
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(lengths[0] / 1.15, lengths[-1] * (lengths[-1] / lengths[0]) ** 0.42)
    axis.xaxis.set_major_locator(FixedLocator(lengths))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms")
    )
    axis.set_xlabel("tokens")
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    _label(axis, ends, lengths[-1])


def _label(axis, ends: list[tuple], longest: int) -> None:
    """Names of all lines in a column at the right, moved apart where they would touch, with leaders to the ends."""
    low, high = (math.log(limit) for limit in axis.get_ylim())
    ends = sorted(ends, key=lambda end: end[1] * longest / end[0])
    wanted = [math.log(min(seconds * longest / length, math.exp(high))) for length, seconds, *_ in ends]
    for (length, seconds, text, colour), height in zip(ends, _apart(wanted, LABEL_HEIGHT * (high - low)), strict=True):
        axis.annotate(
            text,
            xy=(length, seconds),
            xytext=(longest * 1.25, math.exp(height)),
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "linestyle": ":", "relpos": (0, 0.5)},
        )


def _apart(heights: list[float], step: float) -> list[float]:
    """Increasing heights, pushed apart in pairs until all are about `step` from their neighbours."""
    heights = list(heights)
    for _ in range(200):
        for i in range(1, len(heights)):
            push = (step - (heights[i] - heights[i - 1])) / 2
            if push > 0:
                heights[i - 1] -= push
                heights[i] += push
    return heights
