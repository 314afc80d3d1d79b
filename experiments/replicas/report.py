"""Tables and plot of the replicas: docs/replicas.md and docs/replicas.png, from experiments/replicas/results/.

    python experiments/replicas/report.py

What the page says of the numbers is written by hand, between the tables' markers.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "replicas" / "results"
PAGE = ROOT / "docs" / "replicas.md"
TASKS = ("qmsum", "pydocs")
TITLES = {"table6": "pretraining examples (Table 6)", "table8": "losses (Table 8)"}
LENGTHS = ("tokens_128", "tokens_512", "tokens_2048")
ARMS = {
    "table6": {"opl-short": "short", "opl-long": "long", "opl-mixed": "mixed", "opl-none": "none (no pretraining)"},
    "table7": {
        "warm-replicate-keep": "warm: replicate, keep",
        "warm-replicate-stretch": "warm: replicate, stretch",
        "warm-interpolate-keep": "warm: interpolate, keep",
        "warm-interpolate-stretch": "warm: interpolate, stretch",
        "cold": "cold",
        "cold-same-compute": "cold, as many tokens as both stages",
    },
    "table8": {
        "loss-opl": "OPL, 2 queries with 8 negatives each",
        "mnrl-2": "MNRL, batch 2",
        "mnrl-cached-2": "MNRL cached, batch 2",
        "mnrl-cached-32": "MNRL cached, batch 32",
        "mnrl-cached-128": "MNRL cached, batch 128",
        "prototype-first": "prototype, first phase",
        "prototype": "prototype, then MNRL batch 2",
        "teacher": "(the teacher: MNRL batch 32, 128 tokens)",
    },
}


def scores(table: str) -> dict[str, dict[str, list[float]]]:
    """{arm: {task: points of each seed}}."""
    found = defaultdict(lambda: defaultdict(list))
    for task in TASKS:
        for path in sorted(RESULTS.glob(f"{table}-{task}-seed*.json")):
            for record in json.loads(path.read_text())["results"]:
                found[Path(record["encoder"]).name][task].append(100 * record["ndcg_at_10"])
    return found


def runs(table: str, arm: str) -> list[dict]:
    """Training records of an arm, one a seed."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{table}-{arm}-seed*.json"))]


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def ranking_table(table: str, columns: dict) -> list[str]:
    """Scores of the arms on both tasks, and further columns {title: function of an arm's training records}."""
    found = scores(table)
    lines = [f"| | {' | '.join([*TASKS, 'mean', *columns])} |", "|---" * (len(TASKS) + 2 + len(columns)) + "|"]
    for arm, label in ARMS[table].items():
        if arm not in found:
            continue
        tasks = [found[arm][task] for task in TASKS]
        means = [mean(pair) for pair in zip(*tasks, strict=True)]
        further = [column(runs(table, arm)) for column in columns.values()]
        lines.append(f"| {label} | {' | '.join(map(spread, [*tasks, means]))} | {' | '.join(further)} |")
    return lines


def training_tokens(records: list[dict]) -> str:
    return f"{mean(record['totals']['tokens'] for record in records) / 1e6:.1f} M"


def pretraining_table() -> list[str]:
    """Held-out accuracy of the three pretraining regimes, by length, on the same examples."""
    columns = ["tokens", "accuracy, all lengths", "up to 128 tokens", "129 to 512", "513 to 1,024"]
    lines = [f"| pretraining | {' | '.join(columns)} |", "|---|---|---|---|---|---|"]
    names = ["held_out_accuracy", *(f"held_out_accuracy/{length}" for length in LENGTHS)]
    for arm in ("short", "long", "mixed"):
        last = [record["history"][-1] for record in runs("table6", f"held-out-{arm}")]
        values = [spread([100 * row[name] for row in last]) for name in names]
        lines.append(f"| {arm} | {' | '.join([training_tokens(runs('table6', arm)), *values])} |")
    return lines


def warm_table() -> list[str]:
    """Held-out accuracy of the starts at the long length, at the first and the last evaluation."""
    columns = ["start", "tokens at the long length", "accuracy, early", "at the end", "loss at the end"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for arm, label in ARMS["table7"].items():
        records = runs("table7", arm)
        rows = [[row for row in record["history"] if "held_out_loss" in row] for record in records]
        early, last = ([one[i] for one in rows] for i in (0, -1))
        cells = [spread([100 * row["held_out_accuracy"] for row in which]) for which in (early, last)]
        cells[0] += f" (step {early[0]['step']})"
        losses = [row["held_out_loss"] for row in last]
        lines.append(f"| {label} | {training_tokens(records)} | {' | '.join(cells)} | {mean(losses):.3f} |")
    return lines


def plot(path: Path):
    """Table 6 and 8 as bars, Table 7 as curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(17, 4.8), width_ratios=[1, 1.1, 1.3], layout="constrained")
    for axis, table in ((axes[0], "table6"), (axes[2], "table8")):
        found = scores(table)
        arms = [arm for arm in ARMS[table] if arm in found][::-1]
        points = {arm: [mean(pair) for pair in zip(*(found[arm][task] for task in TASKS), strict=True)] for arm in arms}
        axis.barh([ARMS[table][arm] for arm in arms], [mean(points[arm]) for arm in arms], color="lightsteelblue")
        for place, arm in enumerate(arms):
            axis.plot(points[arm], [place] * len(points[arm]), "o", color="tab:blue", markersize=4)
        axis.set(title=TITLES[table], xlabel="nDCG@10 on test, mean of two tasks; dots: seeds")
        axis.spines[["top", "right"]].set_visible(False)
    for number, (arm, label) in enumerate(ARMS["table7"].items()):
        curves = [
            [(row["step"], 100 * row["held_out_accuracy"]) for row in record["history"] if "held_out_loss" in row]
            for record in runs("table7", arm)
        ]
        steps = [step for step, _ in curves[0]]
        values = [mean(curve[i][1] for curve in curves) for i in range(len(steps))]
        style = {"linestyle": "--" if arm.startswith("cold") else "-", "marker": "o", "markersize": 3}
        axes[1].plot(steps, values, color=f"C{number}", label=label, **style)
    axes[1].set(title="warm and cold start (Table 7, Figure 4)", xlabel="step at 8,192 tokens",
                ylabel="held-out masked accuracy, %")  # fmt: skip
    axes[1].legend(frameon=False, fontsize=8)
    axes[1].grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main():
    tables = {
        "pretraining": pretraining_table(),
        "table6": ranking_table("table6", {"fine-tuning tokens": training_tokens}),
        "table7": warm_table(),
        "table8": ranking_table("table8", {"tokens": training_tokens}),
    }
    text = PAGE.read_text()
    for name, lines in tables.items():
        block = "\n".join(lines)
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.S
        )
    PAGE.write_text(text)
    plot(ROOT / "docs" / "replicas.png")
    print("\n\n".join("\n".join(lines) for lines in tables.values()))


if __name__ == "__main__":
    main()
