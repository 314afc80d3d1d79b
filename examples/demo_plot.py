"""What the search demo found, as one plot."""

import json
from pathlib import Path

LABELS = {"whole": "BM25, words and no vectors", "truncate": "{name}, one vector a document",
          "late-chunk": "{name}, 16 vectors a document"}  # fmt: skip
COLORS = {"whole": "dimgray", "truncate": "tab:blue", "late-chunk": "tab:green"}
QUARTERS = ["first", "second", "third", "last"]


def plot(results: Path, image: Path):
    """nDCG@10 of every system in a file of `m2bert eval`; and without BM25's help by where in its document the answer
    begins: a model that forgets what it has read falls to the right. Both with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = json.loads(results.read_text(encoding="utf-8"))["results"]
    figure, (bars, lines) = plt.subplots(1, 2, figsize=(13, 4.4), width_ratios=[1.1, 1], layout="constrained")
    for record in records:
        draw_bar(bars, record)
    alone = [record for record in records if not record["hybrid"]]
    for place, record in enumerate(alone):
        draw_line(lines, record, shift=0.06 * (place - (len(alone) - 1) / 2))
    counts = records[0]["counts"]
    bars.invert_yaxis()
    bars.set(title=f"{counts['queries']} queries, {counts['documents']} documents", xlim=(0, 108))
    bars.set(xlabel="nDCG@10, points; 95 % intervals")
    lines.set(title="by where in the document the answer begins", xticks=range(4), xticklabels=QUARTERS, ylim=(0, 100))
    lines.set(xlabel="quarter of the document", ylabel="nDCG@10, points")
    lines.grid(axis="y", alpha=0.3)
    lines.legend(frameon=False, loc="lower left")
    for axis in (bars, lines):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(image, dpi=120)
    plt.close(figure)


def draw_bar(axis, record: dict):
    """A system's score with its interval; what BM25 helps is paler."""
    score, below, above = points(record)
    alpha = 0.5 if record["hybrid"] else 1
    axis.barh(label(record), score, xerr=[[below], [above]], color=COLORS[record["policy"]], alpha=alpha, capsize=3)
    axis.text(score + above + 1, label(record), f"{score:.1f}", va="center")


def draw_line(axis, record: dict, shift: float):
    """A system's score in each quarter of the document, `shift` to the right: no interval hides another."""
    scores, below, above = zip(*map(points, record["by_quarter"]), strict=True)
    color = COLORS[record["policy"]]
    xs = [quarter + shift for quarter in range(4)]
    axis.errorbar(xs, scores, [below, above], color=color, marker="o", capsize=2, label=label(record))


def label(record: dict) -> str:
    """What the plot calls a system."""
    return LABELS[record["policy"]].format(name=record["name"]) + (", with BM25" if record["hybrid"] else "")


def points(record: dict) -> tuple[float, float, float]:
    """A score and how far its interval reaches below and above it, x 100."""
    score, (low, high) = record["ndcg_at_10"], record["interval_95"]
    return 100 * score, 100 * (score - low), 100 * (high - score)
