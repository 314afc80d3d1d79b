"""Keep the learning curves of finished runs, draw them, and say what ten times the tokens would give.

    python experiments/m2bert_mini/curves.py [FOLDER ...]

takes the curves out of the folders that train/align.py wrote into results/curves.json, then draws docs/alignment.png
from all that are there. The estimate is a power law of 1 - cosine in tokens through the end of a run of twins.sh and
the end of the longest run of the same kind: two points, so it has no error bars.
"""

import json
import sys
from math import log
from pathlib import Path

import matplotlib.pyplot as plt

plt.switch_backend("Agg")
ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
KINDS = {"chunk_cosine": "stretches", "query_cosine": "short spans", "piece_cosine": "pieces"}
ARMS = {  # run of twins.sh: label, color, curves of the two stages
    "none": ("without layers", "tab:orange", ("control-1.5e-3", "control-long-1.5e-3")),
    "long-conv": ("two layers, long convolution", "tab:red", ("layers", "layers-long")),
    "attention": ("two layers, attention", "tab:blue", ()),
}


def curve(folder: Path, curves: dict[str, list[dict]]) -> list[dict]:
    """Return the evaluations of a run, each with the tokens seen until then, those of the run before included."""
    record = json.loads((folder / "training.json").read_text())
    rows = [row for row in record["history"] if "chunk_cosine" in row]
    each = record["totals"]["tokens"] / rows[-1]["step"]
    start = record["config"]["model"]["path"]
    before = curves[Path(start).name][-1]["tokens"] if start else 0
    return [
        {"tokens": before + round(each * row["step"])} | {name: round(row[name], 5) for name in KINDS} for row in rows
    ]


def main(folders: list[str]):
    path = RESULTS / "curves.json"
    curves = json.loads(path.read_text()) if path.exists() else {}
    for folder in folders:  # a first stage before the second
        curves[Path(folder).name] = curve(Path(folder), curves)
    path.write_text(
        "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(curves[key])}" for key in sorted(curves)) + "\n}\n"
    )
    figure, axes = plt.subplots(1, len(KINDS), figsize=(12, 4), layout="constrained", sharex=True)
    for axis, (name, title) in zip(axes, KINDS.items(), strict=True):
        for twin, (label, color, stages) in ARMS.items():
            rows, short = [row for stage in stages for row in curves[stage]], RESULTS / "twins" / f"{twin}.json"
            if rows:
                axis.plot([row["tokens"] / 1e6 for row in rows], [row[name] for row in rows], color=color, label=label)
                axis.plot(rows[-1]["tokens"] / 1e6, rows[-1][name], "o", color=color)
            if short.exists():
                end = json.loads(short.read_text())
                axis.plot(end["tokens"] / 1e6, end["scores"][name], "o", color=color, label=None if rows else label)
                if rows:
                    exponent = log((1 - rows[-1][name]) / (1 - end["scores"][name])) / log(
                        rows[-1]["tokens"] / end["tokens"]
                    )
                    print(f"{label}, {title}: {1 - (1 - rows[-1][name]) * 10**exponent:.3f} with ten times the tokens")
        axis.set(title=title, xlabel="million tokens", xscale="log")
        axis.set_xticks([2, 5, 10, 20, 40], labels=["2", "5", "10", "20", "40"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("cosine to the teacher, held-out text")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(ROOT / "docs" / "alignment.png", dpi=120)


if __name__ == "__main__":
    main(sys.argv[1:])
