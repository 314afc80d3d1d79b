"""Tables and plot of docs/results.md and docs/results.png, from evaluations/results/.

    python recipes/report.py

What the page says of the numbers is written by hand, around the tables' markers.
"""

import json
import re
from pathlib import Path

from m2bert_eval.comparison import differences

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "evaluations" / "results"
PAGE = ROOT / "docs" / "results.md"
TASKS = {"qmsum": "QMSUM test", "pydocs": "pydocs test"}
OURS, CONTROL = "m2bert-small / truncate", "layer-free control / truncate"
SYSTEMS = {  # as the records call them, as the page does
    "bm25": "BM25",
    "tfidf-rp:768": "`tfidf-rp`, 768 dimensions",
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
    (OURS, "tfidf-rp:768"),
    (OURS, "MiniLM / chunk-average"),
    (OURS, "MiniLM fine-tuned / chunk-average"),
    (OURS, CONTROL),
    (OURS, "bm25"),
    ("m2bert-small without QMSUM / truncate", "tfidf-rp:768"),
    ("m2bert-small without QMSUM / truncate", "MiniLM / chunk-average"),
    ("m2bert-small / late-chunk", "MiniLM / best-chunk"),
    ("m2bert-small / late-chunk", "layer-free control / late-chunk"),
    ("m2bert-small / truncate + bm25 (weighted)", "bm25"),
    ("m2bert-small / late-chunk + bm25 (weighted)", "bm25"),
]
CONTEXTS = ("truncate:tokens=512", "truncate:tokens=2048", "truncate:tokens=8192", "truncate")


def records(task: str, suffix: str = "") -> dict[str, dict]:
    """{system: record}, of the files of the former evaluation and of this one; the latter hold."""
    found = {}
    for path in (RESULTS / f"{task}{suffix}.json", RESULTS / f"m2bert-small-{task}{suffix}.json"):
        if path.is_file():
            found |= {record["system"]: record for record in json.loads(path.read_text())["results"]}
    fingerprints = {record["data_fingerprint"] for record in found.values()}
    if len(fingerprints) > 1:
        raise ValueError(f"{task}{suffix}: results of different data ({', '.join(sorted(fingerprints))})")
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


def plot(found: dict[str, dict[str, dict]], path: Path):
    """Quality against cost: seconds of the processor for a document."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TASKS), figsize=(13, 5), layout="constrained")
    for axis, (task, title) in zip(axes, TASKS.items(), strict=True):
        for system, label in SYSTEMS.items():
            record = found[task].get(system)
            if record is None or not record.get("seconds_per_document") or "bm25" in system:
                continue
            name = label.replace("**", "").replace("`", "")
            mine = "m2bert" in system or "layer-free" in system
            place = record["seconds_per_document"], 100 * record["ndcg_at_10"]
            axis.plot(*place, "o", color="tab:red" if mine else "tab:gray")
            axis.annotate(name, place, xytext=(5, 3), textcoords="offset points", fontsize=7)
        axis.axhline(100 * found[task]["bm25"]["ndcg_at_10"], color="tab:blue", linestyle="--", label="BM25")
        axis.set(title=title, xscale="log", xlabel="seconds of two CPU cores to embed a document", ylabel="nDCG@10")
        axis.set_xlim(right=axis.get_xlim()[1] * 20)
        axis.legend(frameon=False, loc="lower right")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main():
    found = {task: records(task) for task in TASKS}
    tables = {"scores": score_table(found), "paired": paired_table(found), "context": context_table(found)}
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
