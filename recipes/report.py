"""Tables and plot of docs/results.md and docs/results.png, from evaluations/results/.

    python recipes/report.py

What the page says of the numbers is written by hand, around the tables' markers.
"""

import json
import re
from pathlib import Path

from m2bert.eval.statistics import differences

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "evaluations" / "results"
PAGE = ROOT / "docs" / "results.md"
TASKS = {"qmsum": "QMSUM test", "pydocs": "pydocs test"}
OURS, CONTROL = "m2bert-small / truncate", "layer-free control / truncate"
SYSTEMS = {  # as the records call them, as the page does
    "bm25": "BM25",
    "tfidf-rp:768": "`tfidf-rp`, 768 dimensions",
    "tfidf-rp:3072": "`tfidf-rp`, 3,072 dimensions",
    "MiniLM / truncate": "MiniLM, first 256 tokens",
    "MiniLM / chunk-average": "MiniLM, chunk-average",
    "MiniLM / best-chunk": "MiniLM, best chunk",
    "MiniLM fine-tuned / truncate": "MiniLM fine-tuned on the same pairs, first 256 tokens",
    "MiniLM fine-tuned / chunk-average": "MiniLM fine-tuned on the same pairs, chunk-average",
    CONTROL: "layer-free control",
    OURS: "**m2bert-small, one vector**",
    "layer-free control / late-chunk": "layer-free control, 16 late chunks",
    "m2bert-small / late-chunk": "**m2bert-small, 16 late chunks**",
    "layer-free control without QMSUM / truncate": "layer-free control, no QMSUM in training",
    "m2bert-small without QMSUM / truncate": "m2bert-small, no QMSUM in training, one vector",
    "m2bert-small without QMSUM / late-chunk": "m2bert-small, no QMSUM in training, 16 late chunks",
    "m2bert-small / truncate + bm25 (weighted)": "BM25 + m2bert-small, weighted",
    "m2bert-small / late-chunk + bm25 (weighted)": "BM25 + m2bert-small's late chunks, weighted",
}
PAIRS = [
    (OURS, "tfidf-rp:3072"),
    (OURS, "MiniLM / chunk-average"),
    (OURS, "MiniLM fine-tuned / chunk-average"),
    (OURS, CONTROL),
    (OURS, "bm25"),
    ("m2bert-small without QMSUM / truncate", "tfidf-rp:3072"),
    ("m2bert-small without QMSUM / truncate", "MiniLM / chunk-average"),
    (OURS, "m2bert-small without QMSUM / truncate"),
    ("m2bert-small / late-chunk", "MiniLM / best-chunk"),
    ("m2bert-small / late-chunk", "layer-free control / late-chunk"),
    ("m2bert-small / truncate + bm25 (weighted)", "bm25"),
    ("m2bert-small / late-chunk + bm25 (weighted)", "bm25"),
]
CONTEXTS = ("truncate:tokens=512", "truncate:tokens=2048", "truncate:tokens=8192", "truncate")


def records(task: str) -> dict[str, dict]:
    """{system: record}, of the baselines' file, where there is one, and of this evaluation's; the latter hold."""
    found = {}
    for path in (RESULTS / f"{task}.json", RESULTS / f"m2bert-small-{task}.json"):
        if path.is_file():
            found |= {record["system"]: record for record in json.loads(path.read_text())["results"]}
    fingerprints = {record["data_fingerprint"] for record in found.values()}
    if len(fingerprints) > 1:
        raise ValueError(f"{task}: results of different data ({', '.join(sorted(fingerprints))})")
    return found


def points(record: dict | None) -> str:
    """Score and interval."""
    if record is None:
        return "not measured"
    low, high = (100 * end for end in record["interval_95"])
    return f"{100 * record['ndcg_at_10']:.1f} ({low:.1f} to {high:.1f})"


def score_table(found: dict[str, dict[str, dict]]) -> list[str]:
    lines = [f"| | {' | '.join(TASKS.values())} |", "|---|---|---|"]
    for system, title in SYSTEMS.items():
        cells = [points(found[task].get(system)) for task in TASKS]
        if set(cells) != {"not measured"}:
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def paired_table(found: dict[str, dict[str, dict]]) -> list[str]:
    """Differences on the same queries; those whose interval leaves out zero are bold."""
    lines = [f"| | minus | {' | '.join(TASKS.values())} |", "|---|---|---|---|"]
    for system, other in PAIRS:
        cells = []
        for task in TASKS:
            pair = [found[task].get(name) for name in (other, system)]
            if None in pair:
                cells.append("not measured")
                continue
            row = next(row for row in differences(pair, other) if row["system"] == system)
            low, high = (100 * end for end in row["interval_95"])
            text = f"{100 * row['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
            cells.append(f"**{text}**" if row["beyond_chance"] else text)
        titles = [SYSTEMS[name].replace("**", "") for name in (system, other)]
        lines.append(f"| {' | '.join([*titles, *cells])} |")
    return lines


def context_table(found: dict[str, dict[str, dict]]) -> list[str]:
    """One vector of the first tokens alone."""
    lines = ["| tokens read | 512 | 2,048 | 8,192 | whole |", "|---|---|---|---|---|"]
    for task, title in TASKS.items():
        for name in ("m2bert-small", "layer-free control"):
            cells = [points(found[task].get(f"{name} / {policy}")) for policy in CONTEXTS]
            lines.append(f"| {title}, {name} | {' | '.join(cells)} |")
    return lines


def distractor_table() -> list[str]:
    """QMSUM alone and among documents that answer nothing."""
    alone, crowded = records("qmsum"), records("distractors")
    lines = ["| | QMSUM test | with 2,000 distractors |", "|---|---|---|"]
    for system, title in SYSTEMS.items():
        if system in crowded:
            lines.append(f"| {title} | {points(alone[system])} | {points(crowded[system])} |")
    return lines


def cost_table() -> list[str]:
    """Seconds of one thread for a document, tokenising included, measured side by side."""
    lines = ["| | 2,048 tokens | 8,192 | 16,384 |", "|---|---|---|---|"]
    for system, rows in costs().items():
        cells = [f"{row['total_seconds']:.2f}" for row in rows]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return lines


def costs() -> dict[str, list[dict]]:
    """{system: its measurements by length}; the folders' names are those of the evaluation."""
    found = json.loads((RESULTS / "m2bert-small-efficiency.json").read_text())["results"]
    return {record["system"].replace("control /", "layer-free control /"): record["rows"] for record in found}


def cost_of(system: str, found: dict[str, list[dict]]) -> float | None:
    """Seconds for a document of 8,192 tokens. Best chunk costs what chunk-average does; what is tuned, what it was."""
    policy = "chunk-average:tokens=256" if system.endswith(("chunk-average", "best-chunk")) else system.split(" / ")[-1]
    name = system.split(" / ")[0].removesuffix(" fine-tuned").removesuffix(" without QMSUM")
    rows = found.get(f"{name} / {policy}")
    return rows and next(row["total_seconds"] for row in rows if row["tokens"] == 8192)


def plot(found: dict[str, dict[str, dict]], path: Path):
    """Quality against cost. What was trained without QMSUM is left out: it would stand on top of what was not."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(14, 5.2), layout="constrained")
    for axis, (task, title) in zip(axes, TASKS.items(), strict=True):
        for system, label in SYSTEMS.items():
            seconds = cost_of(system, costs())
            if seconds is None or "without QMSUM" in system:
                continue
            name = label.replace("**", "").replace(" on the same pairs", "")
            color = "tab:red" if "m2bert" in system else "tab:orange" if "layer-free" in system else "tab:gray"
            place = seconds, 100 * found[task][system]["ndcg_at_10"]
            side = "right" if "layer-free" in system else "left"
            above = "late" in system or "fine-tuned" in system
            offset = (7 if side == "left" else -7), (5 if above else -9)
            axis.plot(*place, "o", color=color)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the line of BM25
            axis.annotate(name, place, offset, textcoords="offset points", ha=side, fontsize=8, color=color, bbox=box)
        axis.axhline(100 * found[task]["bm25"]["ndcg_at_10"], color="tab:blue", linestyle="--", label="BM25")
        axis.set(title=title, xscale="log", ylabel="nDCG@10", ylim=(35, 100),
                 xlabel="seconds of one CPU thread to embed a document of 8,192 tokens")  # fmt: skip
        axis.set_xlim(axis.get_xlim()[0] / 30, axis.get_xlim()[1] * 40)
        axis.legend(frameon=False, loc="lower right")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main():
    found = {task: records(task) for task in TASKS}
    tables = {
        "scores": score_table(found),
        "paired": paired_table(found),
        "context": context_table(found),
        "distractors": distractor_table(),
        "cost": cost_table(),
    }
    text = PAGE.read_text()
    for name, lines in tables.items():
        block = "\n".join(lines)
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.S
        )
    PAGE.write_text(text)
    plot(found, PAGE.with_suffix(".png"))
    print("\n\n".join("\n".join(lines) for lines in tables.values()))


if __name__ == "__main__":
    main()
