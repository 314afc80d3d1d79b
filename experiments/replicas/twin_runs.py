"""The records of twins.sh, and what its later runs need of its earlier ones.

python experiments/replicas/twin_runs.py best {opl,mlm} MIXER     # rates of the best run of seed 0, as key=value
python experiments/replicas/twin_runs.py steps {opl,mlm} MIXER    # steps that cost as much as the dearest mixer's
"""

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "twins"
MIXERS = ("none", "long-conv", "attention")
RATES = ("lr", "layer_lr", "pooler_lr", "filter_lr")
TUNED = {"opl": "pooler_lr", "mlm": "lr"}  # without layers; with them it is layer_lr
NDCG, LOSS = "development_ndcg_at_10", "held_out_loss"
SCORES = {  # title: (score, factor)
    "opl": {"qmsum": (f"{NDCG}/qmsum", 100), "pydocs": (f"{NDCG}/pydocs", 100), "mean": (NDCG, 100)},
    "mlm": {"accuracy, %": ("held_out_accuracy", 100), "loss": (LOSS, 1)},
}


def records(entry: str, mixer: str, off_grid: bool = False) -> list[dict]:
    """Return the runs of an arm; with `off_grid` those at other rates, from which none is chosen."""
    paths = [path for path in sorted(RESULTS.glob(f"{entry}-{mixer}-*.json")) if ("-other-" in path.name) == off_grid]
    return [json.loads(path.read_text()) for path in paths]


def swept(entry: str, mixer: str) -> list[dict]:
    """Return the runs of seed 0 that differ in learning rates alone."""
    found = [record for record in records(entry, mixer) if record["steps"] and record["seed"] == 0]
    fewest = min(record["steps"] for record in found)
    return [record for record in found if record["steps"] == fewest]


def score(record: dict) -> float:
    """Return the score by which learning rates are chosen; larger is better."""
    return record["scores"][NDCG] if record["entry"] == "opl" else -record["scores"][LOSS]


def best(entry: str, mixer: str) -> dict:
    return max(swept(entry, mixer), key=score)


def rates(record: dict) -> str:
    """Return the learning rates as arguments."""
    return " ".join(f"optim.{rate}={'null' if record[rate] is None else record[rate]}" for rate in RATES)


def equal_steps(entry: str, mixer: str) -> int:
    """Return the steps at which the arm costs as many floating-point operations as the most expensive mixer's runs."""
    most = max(best(entry, other)["flops"] for other in MIXERS)
    own = best(entry, mixer)
    return round(own["steps"] * most / own["flops"])


if __name__ == "__main__":
    what, *arm = sys.argv[1:]
    print({"best": lambda: rates(best(*arm)), "steps": lambda: equal_steps(*arm)}[what]())
