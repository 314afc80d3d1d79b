"""What the demo found: one table, one JSON, one plot."""

import json
from pathlib import Path

from m2bert.eval.statistics import paired_difference_interval

LABELS = {
    "bm25": "BM25 (words, no vectors)",
    "tfidf-rp": "tfidf-rp (TF-IDF, random projection)",
    "trained": "M2-BERT, trained",
    "layer-free": "layer-free control, trained",
    "standard": "standard start, mean pooling, trained",
    "start": "identity and IDF start, untrained",
    "untrained": "standard start, mean pooling, untrained",
}
COLORS = {"trained": "tab:blue", "bm25": "tab:gray", "tfidf-rp": "tab:gray"}
METRICS = "held_out_loss", "development_ndcg_at_10"  # of the two stages
ARMS = [  # label, line, folders of its pretraining and fine-tuning
    ("M2-BERT", {"color": "tab:blue"}, "mlm", "trained"),
    ("standard start", {"color": "tab:orange"}, "mlm-standard", "standard"),
    ("layer-free", {"color": "tab:green", "linestyle": "--"}, None, "layer-free"),
]


def report(folder: Path) -> str:
    """Complete `results.json` with paired intervals, draw `demo.png`, and return the table."""
    results = json.loads((folder / "results.json").read_text())
    records = {record["encoder"]: record for record in results["results"]}
    records["trained"] = records["m2bert-demo"]
    records["tfidf-rp"] = records[f"tfidf-rp:{records['trained']['dimensions']}"]
    results["paired"] = {name: paired(records, name) for name in LABELS if name not in ("trained", "bm25")}
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(folder, records)
    lines = [f"{'nDCG@10 on packages never seen in training':44} score  95 % interval   documents cut"]
    for name, label in LABELS.items():
        counts, (low, high) = records[name]["counts"], points(records[name]["interval_95"])
        cut = f"{counts['truncated_documents']} of {counts['documents']}"
        lines.append(f"{label:44} {100 * records[name]['ndcg_at_10']:5.1f}  {low:5.1f} to {high:5.1f}  {cut:>14}")
    lines.append("")
    for name, pair in results["paired"].items():
        low, high = points(pair["interval_95"])
        difference = 100 * pair["difference"]
        lines.append(
            f"trained minus {LABELS[name]:40} {difference:+5.1f}  paired 95 % interval {low:+.1f} to {high:+.1f}"
        )
    lines += [
        "",
        "This model is small and from scratch: minutes of one CPU core on documentation strings. The rows beside it",
        "say what each part is worth; BM25 is the bar that a real model has to pass.",
        f"{folder.name}/demo.png  {folder.name}/results.json  {folder.name}/m2bert-demo/ (a complete Hub folder)",
    ]
    return "\n".join(lines)


def points(interval: list[float]) -> list[float]:
    return [100 * bound for bound in interval]


def paired(records: dict[str, dict], other: str) -> dict:
    """The trained model minus another system on the same queries, with its 95 % interval."""
    scores, others = records["trained"]["query_scores"], records[other]["query_scores"]
    difference, low, high = paired_difference_interval(scores, others)
    return {"difference": difference, "interval_95": [low, high]}


def plot(folder: Path, records: dict[str, dict]):
    """Learning curves of both stages, and the scores with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(16, 4.6), width_ratios=[1, 1, 1.1], layout="constrained")
    for label, line, *stages in ARMS:
        for axis, stage, metric, scale in zip(axes, stages, METRICS, (1, 100), strict=False):
            if stage is not None:
                rows = json.loads((folder / stage / "training.json").read_text())["history"]
                measured = [(row["step"], scale * row[metric]) for row in rows if metric in row]
                axis.plot(*zip(*measured, strict=True), marker="o", **line, label=label, markersize=4)
                if metric == "held_out_loss":
                    axis.plot([row["step"] for row in rows], [row["loss"] for row in rows], **line, alpha=0.35)
    axes[0].set(title="masked-language-model pretraining", xlabel="step", ylabel="loss per masked token")
    axes[1].set(title="retrieval fine-tuning", xlabel="step", ylabel="development nDCG@10, points")
    axes[0].legend(title="dots: held out; pale: training", frameon=False)
    axes[1].legend(frameon=False)
    for axis in axes[:2]:
        axis.grid(alpha=0.3)
    names = list(LABELS)[::-1]
    scores = [100 * records[name]["ndcg_at_10"] for name in names]
    bounds = [points(records[name]["interval_95"]) for name in names]
    errors = [[score - low for score, (low, _) in zip(scores, bounds, strict=True)],
              [high - score for score, (_, high) in zip(scores, bounds, strict=True)]]  # fmt: skip
    colors = [COLORS.get(name, "lightsteelblue") for name in names]
    bars = axes[2].barh([LABELS[name] for name in names], scores, xerr=errors, color=colors, capsize=3)
    axes[2].bar_label(bars, [f"{score:.1f}" for score in scores], padding=4)
    axes[2].set(title="nDCG@10 on packages never seen in training", xlim=(0, 105), xlabel="points, 95 % intervals")
    axes[2].spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "demo.png", dpi=120)
