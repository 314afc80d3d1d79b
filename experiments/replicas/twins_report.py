"""Tables of experiments/replicas/twins.sh and experiments/replicas/losses.sh, and what the former's later runs need of its earlier ones.

python experiments/replicas/twins_report.py                          # the tables of docs/replicas.md, printed too
python experiments/replicas/twins_report.py best {opl,mlm} MIXER     # rates of the best run of seed 0, as key=value
python experiments/replicas/twins_report.py steps {opl,mlm} MIXER    # steps that cost as much as the most expensive mixer's run
"""

import json
import re
import sys
from pathlib import Path
from statistics import mean

from report import PAGE, spread

RESULTS = Path(__file__).parent / "results" / "twins"
LOSSES = RESULTS.parent / "losses"
LAYER_RATES = ("1e-3", "5e-3")
LOSS_TITLES = {
    "opl": "OPL",
    "opl-weighted": "OPL, relevant pairs weigh 10",
    "mined": "MNRL, 6 queries with 2 negatives of BM25 each",
    "prototype": "prototype, teacher MiniLM",
}
MIXERS = ("none", "long-conv", "attention")
RATES = ("lr", "layer_lr", "pooler_lr", "filter_lr")
TUNED = {"opl": "pooler_lr", "mlm": "lr"}  # without layers; with them it is layer_lr
NDCG, ACCURACY, LOSS = "development_ndcg_at_10", "held_out_accuracy", "held_out_loss"
COLUMNS = {  # title: (score, factor)
    "opl": {"qmsum": (f"{NDCG}/qmsum", 100), "pydocs": (f"{NDCG}/pydocs", 100), "mean": (NDCG, 100)},
    "mlm": {"accuracy, %": (ACCURACY, 100), "loss": (LOSS, 1)},
}
TITLES = {
    "opl": "Retrieval: nDCG@10 of the development queries, %",
    "mlm": "Masked language model: held-out text",
}


def records(entry: str, mixer: str, other: bool = False) -> list[dict]:
    """The runs of an arm; with `other` those at rates off the grid, from which none is chosen."""
    paths = [path for path in sorted(RESULTS.glob(f"{entry}-{mixer}-*.json")) if ("-other-" in path.name) == other]
    return [json.loads(path.read_text()) for path in paths]


def swept(entry: str, mixer: str) -> list[dict]:
    """The runs of seed 0 that differ in learning rates alone."""
    found = [record for record in records(entry, mixer) if record["steps"] and record["seed"] == 0]
    return [record for record in found if record["steps"] == min(record["steps"] for record in found)]


def score(record: dict) -> float:
    """By which learning rates are chosen; larger is better."""
    return record["scores"][NDCG] if record["entry"] == "opl" else -record["scores"][LOSS]


def best(entry: str, mixer: str) -> dict:
    return max(swept(entry, mixer), key=score)


def rates(record: dict) -> str:
    """The learning rates as arguments."""
    return " ".join(f"optim.{rate}={'null' if record[rate] is None else record[rate]}" for rate in RATES)


def equal_steps(entry: str, mixer: str) -> int:
    """Steps at which the arm costs as many floating-point operations as the most expensive mixer's runs."""
    most = max(best(entry, other)["flops"] for other in MIXERS)
    own = best(entry, mixer)
    return round(own["steps"] * most / own["flops"])


def row(entry: str, label: str, runs: list[dict]) -> str:
    """Mean and deviation over seeds of an arm's runs, and what they cost."""
    first = runs[0]
    tuned = TUNED[entry] if first["mixer"] == "none" else "layer_lr"
    cells = [label, str(len(runs)), str(first["steps"]), f"{first[tuned]:g}" if first["steps"] else ""]
    for name, factor in COLUMNS[entry].values():
        values = [factor * run["scores"][name] for run in runs]
        cells.append(spread(values) if factor > 1 else f"{mean(values):.3f}")
    cells += [f"{first['mixer_parameters']:,}", f"{mean(run['tokens'] for run in runs) / 1e6:.2f} M"]
    cells += [f"{mean(run['seconds'] for run in runs):.0f}", f"{first['flops_per_token'] / 1e6:.2f} M"]
    cells.append(f"{mean(run['flops'] for run in runs) / 1e12:.2f} T")
    return f"| {' | '.join(cells)} |"


def table(entry: str) -> list[str]:
    """The start where it was scored, each arm at its best rates, and where more steps were run, at equal operations."""
    columns = ["", "seeds", "steps", "learning rate", *COLUMNS[entry], "parameters of a mixer", "tokens", "seconds",
               "FLOPs a token", "FLOPs"]  # fmt: skip
    lines = [f"**{TITLES[entry]}**", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [row(entry, "before training", [start]) for start in records(entry, "none") if not start["steps"]]
    for mixer in MIXERS:
        chosen = best(entry, mixer)
        runs = [run for run in records(entry, mixer) if rates(run) == rates(chosen)]
        for steps in sorted({run["steps"] for run in runs if run["steps"]}):
            label = mixer if steps == chosen["steps"] else f"{mixer}, equal FLOPs"
            lines.append(row(entry, label, [run for run in runs if run["steps"] == steps]))
    return lines


def sweep_table(entry: str) -> list[str]:
    """Seed 0 at every rate tried."""
    columns = ["seed 0", *RATES, *COLUMNS[entry]]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for mixer in MIXERS:
        for run in sorted(swept(entry, mixer), key=score) + records(entry, mixer, other=True):
            used = set(RATES) - ({"layer_lr"} if mixer == "none" else set())
            used -= set() if mixer == "long-conv" else {"filter_lr"}
            cells = [f"{run[rate]:g}" if rate in used and run[rate] is not None else "" for rate in RATES]
            cells += [f"{factor * run['scores'][name]:.4g}" for name, factor in COLUMNS[entry].values()]
            lines.append(f"| {mixer} | {' | '.join(cells)} |")
    return lines


def loss_table() -> list[str]:
    """Losses beside the multiple negatives ranking loss of the twins' convolutions, by the layer's learning rate."""
    rows = {"MNRL, 16 queries": [f"{RESULTS}/opl-long-conv-{rate}-seed*.json" for rate in LAYER_RATES]}
    for name, title in LOSS_TITLES.items():
        rows[title] = [f"{LOSSES}/{name}-{rate}-seed*.json" for rate in LAYER_RATES]
    lines = [f"| | {' | '.join(f'layer at {rate}' for rate in LAYER_RATES)} |", "|---|---|---|"]
    for title, patterns in rows.items():
        cells = []
        for pattern in map(Path, patterns):
            runs = [json.loads(path.read_text())["scores"] for path in sorted(pattern.parent.glob(pattern.name))]
            values = [[100 * run[f"{NDCG}/{task}"] for run in runs] for task in ("qmsum", "pydocs")]
            cells.append(
                " / ".join(f"{mean(value):.1f}" for value in values) + f" ({len(runs)})" if runs else "not run"
            )
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def main(argv: list[str]):
    if argv:
        what, entry, mixer = argv
        print(rates(best(entry, mixer)) if what == "best" else equal_steps(entry, mixer))
        return
    tables = {f"twins-{entry}": [*table(entry), "", *sweep_table(entry)] for entry in COLUMNS}
    text = PAGE.read_text()
    for name, lines in (tables | {"twins-losses": loss_table()}).items():
        block = "\n".join(lines)
        print(block, end="\n\n")
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.S
        )
    PAGE.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
