"""The plots of pages.py, written without a display."""

import json
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import numpy as np

plt.switch_backend("Agg")
POINTS = "nDCG@10, points"


def save(figure, path: Path, dpi: int = 120):
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


# --- docs/results.png ---


FAMILIES = {
    "MiniLM": "tab:gray",
    "MiniLM fine-tuned": "black",
    "layer-free control": "tab:orange",
    "m2bert-small": "tab:red",
}
MARKERS = {"truncate": "o", "chunk-average": "s", "best-chunk": "^", "late-chunk": "D"}


def results(found: dict, costs: dict, tasks: dict, systems: dict, path: Path):
    """Draw quality against cost, without what was trained without QMSUM: it would hide what was not."""
    figure, axes = plt.subplots(1, len(tasks), figsize=(14, 5.4), layout="constrained", sharey=True)
    for axis, (task, title) in zip(axes, tasks.items(), strict=True):
        bm25 = found[task]["bm25"]
        axis.axhline(100 * bm25["ndcg_at_10"], color="tab:blue", linestyle="--", label="BM25; band: 95 % interval")
        axis.axhspan(*(100 * end for end in bm25["interval_95"]), color="tab:blue", alpha=0.12)
        for system, label in systems.items():
            alone, hybrid = system.removesuffix(" + bm25 (weighted)"), system.endswith(" + bm25 (weighted)")
            family, _, policy = alone.partition(" / ")
            cost = f"{family.removesuffix(' fine-tuned')} / {policy}"
            if policy in ("chunk-average", "best-chunk"):  # which cost the same
                cost = cost.replace(policy, "chunk-average:tokens=256")
            if cost not in costs or family not in FAMILIES:
                continue
            seconds = next(row["total_seconds"] for row in costs[cost] if row["tokens"] == 8192)
            shift = 1.12 if "fine-tuned" in family or hybrid else 1  # no interval hides another
            record = found[task][system]
            point, (low, high) = 100 * record["ndcg_at_10"], (100 * end for end in record["interval_95"])
            color, name = FAMILIES[family], label.replace("**", "").replace(" on the same pairs", "")
            axis.errorbar(seconds * shift, point, [[point - low], [high - point]], marker=MARKERS[policy], color=color,
                          markerfacecolor="white" if hybrid else color, linestyle="none", capsize=3,
                          label=name)  # fmt: skip
        axis.set(title=title, xscale="log", ylim=(35, 100), xlim=(0.02, 10), xticks=[0.03, 0.1, 0.3, 1, 3, 10],
                 xlabel="seconds of one CPU thread for a document of 8,192 tokens")  # fmt: skip
        axis.set_xticks([], minor=True)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"{POINTS}; bars: 95 % intervals")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    save(figure, path, dpi=110)


# --- docs/suite.png ---


def suite(found: dict, means: list, tasks: dict, systems: dict, path: Path):
    """Draw nDCG@10 of every system on each task, and the mean over tasks, with 95 % intervals."""
    figure, axes = plt.subplots(1, len(tasks) + 1, figsize=(17, 5.6), layout="constrained", sharey=True)
    panels = {title: [found[system, task] for system in systems] for task, title in tasks.items()}
    points = {
        title: [(record["ndcg_at_10"], record["interval_95"]) for record in records]
        for title, records in panels.items()
    } | {"mean of the tasks": [(over.mean, over.interval) for over in means]}
    kinds = {"m2bert": "tab:red", "MiniLM": "tab:gray", "tfidf": "black", "bm25": "tab:blue"}
    colors = [next(color for kind, color in kinds.items() if kind in system) for system in systems]
    for axis, (title, rows) in zip(axes, points.items(), strict=True):
        for place, ((value, interval), color, system) in enumerate(zip(rows, colors, systems, strict=True)):
            reach = [[100 * abs(end - value)] for end in interval]
            hybrid = "+ bm25" in system
            axis.errorbar(100 * value, place, xerr=reach, marker="o", color=color, capsize=2,
                          markerfacecolor="white" if hybrid else color)  # fmt: skip
        axis.axvline(100 * rows[0][0], color="tab:blue", linestyle="--", linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(systems)), [title.replace("`", "") for title in systems.values()], fontsize=9)
    axes[0].invert_yaxis()
    figure.supxlabel(f"{POINTS}; 95 % intervals; dashed line: BM25; open circles: with BM25", fontsize=10)
    save(figure, path, dpi=110)


# --- docs/replicas.png ---


def replicas(bars: dict[str, dict[str, list[float]]], curves: dict[str, list[dict]], path: Path):
    """Draw Tables 6 and 8 as bars (title: arm: points by seed), Table 7 as curves (arm: training records)."""
    figure, axes = plt.subplots(1, 3, figsize=(17, 4.8), width_ratios=[1, 1.1, 1.3], layout="constrained")
    for axis, (title, arms) in zip(axes[::2], bars.items(), strict=True):
        arms = dict(reversed(arms.items()))
        axis.barh([*arms], [mean(points) for points in arms.values()], color="lightsteelblue")
        for place, points in enumerate(arms.values()):
            axis.plot(points, [place] * len(points), "o", color="tab:blue", markersize=4)
        axis.set(title=title, xlabel="nDCG@10 on test, mean of two tasks; dots: seeds")
        axis.spines[["top", "right"]].set_visible(False)
    for number, (label, records) in enumerate(curves.items()):
        rows = [[row for row in record["history"] if "held_out_loss" in row] for record in records]
        values = [mean(100 * row["held_out_accuracy"] for row in seeds) for seeds in zip(*rows, strict=True)]
        style = "--" if label.startswith("cold") else "-"
        axes[1].plot([row["step"] for row in rows[0]], values, color=f"C{number}", label=label, linestyle=style,
                     marker="o", markersize=3)  # fmt: skip
    axes[1].set(title="warm and cold start (Table 7, Figure 4)", xlabel="step at 8,192 tokens",
                ylabel="held-out masked accuracy, %")  # fmt: skip
    axes[1].legend(frameon=False, fontsize=8)
    axes[1].grid(alpha=0.3)
    save(figure, path)


# --- docs/performance.png ---

OTHERS = ["#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f"]
STYLES = {"bfloat16": "-", "float16": ":", "float32": (0, (5, 2))}


def performance(panels: dict[tuple[str, str], dict], path: Path):
    """Draw time against length, one panel per (device, mode) with its series of records by length, {(arm, dtype):
    {length: record}}; the legend has the order of the lines' ends."""
    panels = {key: lines for key, lines in panels.items() if any(len(records) > 1 for records in lines.values())}
    figure, axes = plt.subplots(1, len(panels), figsize=(8.5 * len(panels), 6), squeeze=False, layout="constrained")
    names = sorted({arm for lines in panels.values() for arm, _ in lines})
    others = [name for name in names if not name.startswith("ours") and name != "original"]
    colors = {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)} | {"original": "#1a1a1a"}
    for axis, ((device, mode), lines) in zip(axes[0], panels.items(), strict=True):
        slowest = {key: [*records.values()][-1] for key, records in lines.items()}
        order = sorted(lines, key=lambda key: -slowest[key]["seconds"] / slowest[key]["length"])
        for arm, dtype in order:
            ours, records = arm.startswith("ours"), lines[arm, dtype]
            axis.plot([*records], [record["seconds"] for record in records.values()], linestyle=STYLES[dtype],
                      color="#c1272d" if ours else colors[arm], linewidth=2.4 if ours else 1.4, marker="o",
                      markersize=3, label=f"{arm} {dtype}")  # fmt: skip
        lengths = sorted({length for records in lines.values() for length in records})
        where, threads = slowest[order[0]]["processor"], slowest[order[0]]["threads"]
        where += f", {threads} thread{'s' if threads > 1 else ''}" if device == "cpu" else ""
        axis.set(xscale="log", yscale="log", xlabel="tokens")
        axis.set_title(f"{'CPU' if device == 'cpu' else 'GPU'}, {mode}, one text\n{where}", fontsize=10, loc="left")
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_formatter(plt.NullFormatter())
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms")
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=4)
        axis.spines[["top", "right"]].set_visible(False)
    save(figure, path, dpi=150)


# --- examples/demo_train.py ---

TRAINED_LABELS = {
    "bm25": "BM25 (words, no vectors)",
    "tfidf-rp": "tfidf-rp (TF-IDF, random projection)",
    "m2bert-demo": "M2-BERT, trained",
    "layer-free": "layer-free control, trained",
    "standard": "standard start, mean pooling, trained",
    "start": "identity and IDF start, untrained",
    "untrained": "standard start, mean pooling, untrained",
}
CURVES = [  # label, line, folders of its pretraining and fine-tuning
    ("M2-BERT", {"color": "tab:blue"}, "mlm", "trained"),
    ("standard start", {"color": "tab:orange"}, "mlm-standard", "standard"),
    ("layer-free", {"color": "tab:green", "linestyle": "--"}, None, "layer-free"),
]


def demo_train(folder: Path, records: dict[str, dict], path: Path):
    """Draw learning curves of both stages of the training demo, and the scores with their intervals."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.6), width_ratios=[1, 1, 1.1], layout="constrained")
    for label, line, *stages in CURVES:
        metrics = ("held_out_loss", 1), ("development_ndcg_at_10", 100)
        for axis, stage, (metric, scale) in zip(axes, stages, metrics, strict=False):
            if stage is not None:
                rows = json.loads((folder / stage / "training.json").read_text())["history"]
                measured = [(row["step"], scale * row[metric]) for row in rows if metric in row]
                axis.plot(*zip(*measured, strict=True), marker="o", **line, label=label, markersize=4)
                if metric == "held_out_loss":
                    axis.plot([row["step"] for row in rows], [row["loss"] for row in rows], **line, alpha=0.35)
    axes[0].set(title="masked-language-model pretraining", xlabel="step", ylabel="loss per masked token")
    axes[1].set(title="retrieval fine-tuning", xlabel="step", ylabel=f"development {POINTS}")
    axes[0].legend(title="dots: held out; pale: training", frameon=False)
    axes[1].legend(frameon=False)
    for axis in axes[:2]:
        axis.grid(alpha=0.3)
    colors = ["tab:gray" if name in ("bm25", "tfidf-rp") else "lightsteelblue" for name in TRAINED_LABELS]
    colors[2] = "tab:blue"
    scores = np.array([100 * records[name]["ndcg_at_10"] for name in TRAINED_LABELS])
    bounds = 100 * np.array([records[name]["interval_95"] for name in TRAINED_LABELS])
    bars = axes[2].barh([*TRAINED_LABELS.values()], scores, xerr=np.abs(bounds.T - scores), color=colors, capsize=3)
    axes[2].bar_label(bars, [f"{score:.1f}" for score in scores], padding=4)
    axes[2].invert_yaxis()
    axes[2].set(title="nDCG@10 on packages never seen in training", xlim=(0, 108), xlabel=f"{POINTS}; 95 % intervals")
    axes[2].spines[["top", "right"]].set_visible(False)
    save(figure, path)
