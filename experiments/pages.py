"""Write the tables and plots of docs/results.md, docs/replicas.md and docs/performance.md from the committed results.

    python experiments/pages.py                          # all; or some of: results suite replicas performance
    python experiments/pages.py demo-train FOLDER        # table and plot of examples/demo_train.py, FOLDER/demo.png

A page is written by hand around its tables, which stand between `<!-- name -->` and `<!-- end -->`. The names of rows
and columns are in the experiments' page.yaml.
"""

import json
import math
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import plots
import yaml
from replicas import twin_runs as twins

from m2bert.eval.statistics import differences, mean_over_tasks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXPERIMENTS = ROOT / "experiments"
NOT_MEASURED = "not measured"

# --- shared ---


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_all(folder: Path, pattern: str) -> list:
    """Return the contents of the JSON files that match a pattern, in order of their names."""
    return [read(path) for path in sorted(folder.glob(pattern))]


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def fill(page: Path, blocks: dict[str, str]):
    """Replace what stands between the markers of every block of a page."""
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, found = marked.subn(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
        if not found:
            raise ValueError(f"{page} has no <!-- {name} --> to fill")
    page.write_text(text, encoding="utf-8")


def percent(value: float, interval: list[float], sign: str = "") -> str:
    """Return a score or a difference and its interval in points."""
    low, high = (f"{100 * end:{sign}.1f}" for end in interval)
    return f"{100 * value:{sign}.1f} ({low} to {high})"


def score(record: dict | None) -> str:
    """Return nDCG@10 of a record of `m2bert eval` with its interval, in points."""
    return percent(record["ndcg_at_10"], record["interval_95"]) if record else NOT_MEASURED


def spread(values: list[float]) -> str:
    """Return mean and standard deviation over seeds."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def seconds_text(seconds: float) -> str:
    """Return a time in its unit: s, ms or us."""
    unit, size = next(pair for pair in (("s", 1), ("ms", 1e-3), ("us", 1e-6)) if seconds >= pair[1] or pair[0] == "us")
    return f"{seconds / size:.3g} {unit}"


def bytes_text(count: int | None) -> str:
    """Return an amount of memory in its unit: GB or MB."""
    return "" if count is None else f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


# --- docs/results.md ---

SMALL = EXPERIMENTS / "m2bert_small" / "results"
RESULTS_PAGE = yaml.safe_load((EXPERIMENTS / "m2bert_small" / "page.yaml").read_text(encoding="utf-8"))
TASKS, SYSTEMS, PAIRS = (RESULTS_PAGE[key] for key in ("tasks", "systems", "pairs"))
CONTEXTS = ("truncate:tokens=512", "truncate:tokens=2048", "truncate:tokens=8192", "truncate")


def results():
    found = {task: eval_records(task) for task in TASKS}
    crowded = eval_records("distractors")
    costs = {
        record["system"].replace("control /", "layer-free control /"): record["rows"]
        for record in read(SMALL / "efficiency.json")["results"]
    }
    scores = {title: [score(found[task].get(system)) for task in TASKS] for system, title in SYSTEMS.items()}
    contexts = [
        [f"{title}, {name}", *(score(found[task].get(f"{name} / {policy}")) for policy in CONTEXTS)]
        for task, title in TASKS.items()
        for name in ("m2bert-small", "layer-free control")
    ]
    distractors = [
        [title, score(found["qmsum"][system]), score(crowded[system])]
        for system, title in SYSTEMS.items()
        if system in crowded
    ]
    paired = []
    for system, other in PAIRS:
        cells = [SYSTEMS[name].replace("**", "") for name in (system, other)]
        for task in TASKS:
            pair = [found[task].get(name) for name in (other, system)]
            cells.append(NOT_MEASURED if None in pair else difference_text(*pair, bold="**"))
        paired.append(cells)
    seconds = [[system, *(f"{row['total_seconds']:.2f}" for row in rows)] for system, rows in costs.items()]
    rows = [[title, *cells] for title, cells in scores.items() if {*cells} != {NOT_MEASURED}]
    blocks = {
        "scores": table(["", *TASKS.values()], rows),
        "paired": table(["", "minus", *TASKS.values()], paired),
        "context": table(["tokens read", "512", "2,048", "8,192", "whole"], contexts),
        "distractors": table(["", "QMSUM test", "with 2,000 distractors"], distractors),
        "cost": table(["", "2,048 tokens", "8,192", "16,384"], seconds),
    }
    fill(DOCS / "results.md", blocks)
    plots.results(found, costs, TASKS, SYSTEMS, DOCS / "results.png")


def eval_records(task: str) -> dict[str, dict]:
    """Return {system: record} of the baselines' results, where there are any, and of m2bert-small's, which win."""
    paths = [EXPERIMENTS / "baselines" / "results" / f"{task}.json", SMALL / f"{task}.json"]
    found = {record["system"]: record for path in paths if path.is_file() for record in read(path)["results"]}
    if len({record["data_fingerprint"] for record in found.values()}) > 1:
        raise ValueError(f"{task}: results of different data")
    return found


def difference_text(other: dict, record: dict, bold: str = "") -> str:
    """Return how much more a record has than another on the same queries, in `bold` if that is beyond chance."""
    (row,) = differences([other, record], other["system"])
    bold = bold if row["beyond_chance"] else ""
    return bold + percent(row["difference"], row["interval_95"], "+") + bold


# --- the tasks of docs/results.md ---


def suite():
    page = yaml.safe_load((EXPERIMENTS / "suite" / "page.yaml").read_text(encoding="utf-8"))
    files = EXPERIMENTS / "suite" / "results" / "suite.json", EXPERIMENTS / "m2bert_mini" / "results" / "test.json"
    records = [record for file in files for record in read(file)["results"]]
    found = {(record["system"], record["task"]): record for record in records}
    tasks, systems = page["tasks"], page["systems"]
    means = mean_over_tasks([[found[system, task]["query_scores"] for system in systems] for task in tasks])
    rows = []
    for (system, title), over in zip(systems.items(), means, strict=True):
        scores = [f"{100 * found[system, task]['ndcg_at_10']:.1f}" for task in tasks]
        gap = "" if over is means[0] else percent(over.difference, over.difference_interval, "+")
        rows.append([title, *scores, percent(over.mean, over.interval), gap])
    header = ["nDCG@10, test", *tasks.values(), "mean", "minus BM25, paired"]
    sizes = [
        [title, *(f"{found['bm25', task]['counts'][what]:,}" for what in ("queries", "documents"))]
        for task, title in tasks.items()
    ]
    blocks = {"suite": table(header, rows), "suite-sizes": table(["task", "queries", "documents"], sizes)}
    fill(DOCS / "results.md", blocks)
    plots.suite(found, means, tasks, systems, DOCS / "suite.png")


# --- docs/replicas.md ---

REPLICAS = EXPERIMENTS / "replicas" / "results"
ARMS = yaml.safe_load((EXPERIMENTS / "replicas" / "page.yaml").read_text(encoding="utf-8"))


def replicas():
    pretraining = []
    for arm in ("short", "long", "mixed"):
        last = [record["history"][-1] for record in read_all(REPLICAS, f"table6-held-out-{arm}-seed*.json")]
        values = [spread([100 * row[name] for row in last]) for name in ARMS["accuracies"]]
        pretraining.append([arm, training_tokens("table6", arm), *values])
    blocks = {
        "pretraining": table(["pretraining", "tokens", *ARMS["accuracies"].values()], pretraining),
        "table6": ranking_table("table6", "fine-tuning tokens"),
        "table7": warm_table(),
        "table8": ranking_table("table8", "tokens"),
        "twins-losses": loss_table(),
    }
    blocks |= {f"twins-{entry}": f"**{title}**\n\n{twins_table(entry)}\n\n{sweep_table(entry)}"
               for entry, title in ARMS["twins"].items()}  # fmt: skip
    fill(DOCS / "replicas.md", blocks)
    curves = {label: read_all(REPLICAS, f"table7-{arm}-seed*.json") for arm, label in ARMS["table7"].items()}
    bars = {
        title: {
            ARMS[name][arm]: [mean(pair) for pair in zip(*tasks, strict=True)]
            for arm, tasks in test_scores(name).items()
        }
        for name, title in (("table6", "pretraining examples (Table 6)"), ("table8", "losses (Table 8)"))
    }
    plots.replicas(bars, curves, DOCS / "replicas.png")


def test_scores(name: str) -> dict[str, list[list[float]]]:
    """Return {arm: points on each task, by seed} of a table, arms in their order."""
    found = defaultdict(lambda: [[] for _ in TASKS])
    for place, task in enumerate(TASKS):
        for results in read_all(REPLICAS, f"{name}-{task}-seed*.json"):
            for record in results["results"]:
                found[Path(record["encoder"]).name][place].append(100 * record["ndcg_at_10"])
    return {arm: found[arm] for arm in ARMS[name] if arm in found}


def training_tokens(name: str, arm: str) -> str:
    records = read_all(REPLICAS, f"{name}-{arm}-seed*.json")
    return f"{mean(record['totals']['tokens'] for record in records) / 1e6:.1f} M"


def ranking_table(name: str, tokens: str) -> str:
    """Return scores of the arms on both tasks."""
    rows = [
        [
            ARMS[name][arm],
            *map(spread, [*tasks, [mean(pair) for pair in zip(*tasks, strict=True)]]),
            training_tokens(name, arm),
        ]
        for arm, tasks in test_scores(name).items()
    ]
    return table(["", *TASKS, "mean", tokens], rows)


def warm_table() -> str:
    """Return held-out accuracy of the starts at the long length, at the first and the last evaluation."""
    rows = []
    for arm, label in ARMS["table7"].items():
        records = read_all(REPLICAS, f"table7-{arm}-seed*.json")
        evaluations = [[row for row in record["history"] if "held_out_loss" in row] for record in records]
        early, last = ([one[i] for one in evaluations] for i in (0, -1))
        cells = [spread([100 * row["held_out_accuracy"] for row in which]) for which in (early, last)]
        cells[0] += f" (step {early[0]['step']})"
        loss = mean(row["held_out_loss"] for row in last)
        rows.append([label, training_tokens("table7", arm), *cells, f"{loss:.3f}"])
    return table(["start", "tokens at the long length", "accuracy, early", "at the end", "loss at the end"], rows)


def twins_table(entry: str) -> str:
    """Return the start, each mixer at its best rates, and at equal operations where more steps were run."""
    rows = [twins_row(entry, "before training", [run]) for run in twins.records(entry, "none") if not run["steps"]]
    for mixer in twins.MIXERS:
        chosen = twins.best(entry, mixer)
        found = [run for run in twins.records(entry, mixer) if twins.rates(run) == twins.rates(chosen)]
        for steps in sorted({run["steps"] for run in found if run["steps"]}):
            label = mixer if steps == chosen["steps"] else f"{mixer}, equal FLOPs"
            rows.append(twins_row(entry, label, [run for run in found if run["steps"] == steps]))
    header = ["", "seeds", "steps", "learning rate", *twins.SCORES[entry], "parameters of a mixer", "tokens", "seconds",
              "FLOPs a token", "FLOPs"]  # fmt: skip
    return table(header, rows)


def twins_row(entry: str, label: str, found: list[dict]) -> list[str]:
    """Return mean and deviation over seeds of an arm's runs, and what they cost."""
    first = found[0]
    tuned = twins.TUNED[entry] if first["mixer"] == "none" else "layer_lr"
    cells = [label, str(len(found)), str(first["steps"]), f"{first[tuned]:g}" if first["steps"] else ""]
    for name, factor in twins.SCORES[entry].values():
        values = [factor * run["scores"][name] for run in found]
        cells.append(spread(values) if factor > 1 else f"{mean(values):.3f}")
    cells += [f"{first['mixer_parameters']:,}", f"{mean(run['tokens'] for run in found) / 1e6:.2f} M"]
    cells += [f"{mean(run['seconds'] for run in found):.0f}", f"{first['flops_per_token'] / 1e6:.2f} M"]
    return [*cells, f"{mean(run['flops'] for run in found) / 1e12:.2f} T"]


def sweep_table(entry: str) -> str:
    """Return seed 0 at every rate tried."""
    rows = []
    for mixer in twins.MIXERS:
        unused = {"none": {"layer_lr", "filter_lr"}, "attention": {"filter_lr"}, "long-conv": set()}[mixer]
        tried = sorted(twins.swept(entry, mixer), key=twins.score) + twins.records(entry, mixer, off_grid=True)
        for run in tried:
            rates = ["" if rate in unused or run[rate] is None else f"{run[rate]:g}" for rate in twins.RATES]
            scores = [f"{factor * run['scores'][name]:.4g}" for name, factor in twins.SCORES[entry].values()]
            rows.append([mixer, *rates, *scores])
    return table(["seed 0", *twins.RATES, *twins.SCORES[entry]], rows)


def loss_table() -> str:
    """Return losses next to the multiple negatives ranking loss of the twins, by the layer's learning rate."""
    rows = []
    for name, title in ARMS["losses"].items():
        cells = []
        for rate in ("1e-3", "5e-3"):
            found = [run["scores"] for run in read_all(REPLICAS, f"{name}-{rate}-seed*.json")]
            values = [mean(100 * run[f"{twins.NDCG}/{task}"] for run in found) for task in TASKS] if found else []
            cells.append(f"{' / '.join(f'{value:.1f}' for value in values)} ({len(found)})" if found else "not run")
        rows.append([title, *cells])
    return table(["", "layer at 1e-3", "layer at 5e-3"], rows)


# --- docs/performance.md ---

DEVICES = {"cpu": "CPU", "cuda": "GPU"}
MODES = [(device, mode) for device in DEVICES for mode in ("forward", "training")]
CACHE_BYTES = 3_000_000_000  # default limit of the filter cache
CAPACITIES_GB = (8, 24, 80)
LARGEST_DEVIATION = 0.15  # of a measured peak from its straight line, above which no length is derived from it
CIRCUMSTANCES = ["processor", "device", "threads", "torch", "commit", "date"]


def performance():
    paths = sorted((EXPERIMENTS / "speed" / "results").glob("*/*.json"))
    records = [record | {"run": str(path)} for path in paths for record in read(path)]
    records = [record for record in records if record["seconds"] is not None and not record.get("shallow")]
    where = dict.fromkeys(tuple(str(record[field]) for field in CIRCUMSTANCES) for record in records)
    series = {key: whole_models(records, *key) for key in MODES}
    asked = yaml.safe_load((EXPERIMENTS / "speed" / "page.yaml").read_text(encoding="utf-8"))["questions"]
    rows = [question_row(question, records) for question in asked]
    blocks = {
        "circumstances": table(CIRCUMSTANCES, [[*row] for row in where]),
        "questions": table(["", "must", "aim", "measured", "reached"], rows),
        "queries": query_table(records),
        "operations": operation_table(records),
    }
    for (device, mode), lines in series.items():
        blocks[f"{device}-{mode}"] = speed_section(records, lines, device, mode)
    fill(DOCS / "performance.md", blocks)
    plots.performance(series, DOCS / "performance.png")


def whole_models(records: list[dict], device: str, mode: str) -> dict[tuple[str, str], dict[int, dict]]:
    """Return the newest whole-model records of one row per batch, by (arm, dtype) and length."""
    found = defaultdict(dict)
    for record in records:
        if (record["device"], record["mode"], record["batch"]) == (device, mode, 1) and "op" not in record:
            found[record["arm"], record["dtype"]][record["length"]] = record
    return {key: dict(sorted(lengths.items())) for key, lengths in found.items()}


def answer(question: dict, records: list[dict]) -> float | None:
    """Return the measured value that a question of page.yaml asks for; None if the records do not hold it."""
    unit = question["goals"]["unit"]
    field, scale = ("peak_bytes", 1e-9) if unit == "GB" else ("seconds", 1e3 if unit == "ms" else 1)

    def smallest(arm, **wanted) -> float | None:
        wanted, found = {"op": None} | wanted, {}
        for record in records:
            fits = record["arm"] in arm if isinstance(arm, list) else record["arm"] == arm
            if fits and record.get(field) is not None and all(record.get(key) == wanted[key] for key in wanted):
                found[record["arm"]] = scale * record[field]
        return min(found.values(), default=None)

    if "against" not in question:
        return smallest(**question["of"])
    for run in reversed(dict.fromkeys(record["run"] for record in records)):
        ours = smallest(**question["of"], run=run)
        theirs = smallest(**question["of"] | question["against"], run=run)
        if None not in (ours, theirs):
            return theirs / ours if unit == "x" else ours / theirs
    return None


def question_row(question: dict, records: list[dict]) -> list[str]:
    """Return text, must, aim, measured value, and the better of the two goals that it reaches."""
    value, goals, unit = answer(question, records), question["goals"], question["goals"]["unit"]
    cells = [
        f"{goals[name]:g}{'x' if unit[0] == 'x' else f' {unit}'}" if name in goals else "" for name in ("must", "aim")
    ]
    text = f"{DEVICES[question['of']['device']]}: {question['text']}"
    if value is None:
        return [text, *cells, NOT_MEASURED, ""]
    shown = f"{value:.3g} {unit}" if unit in ("ms", "GB") else f"{value:.{2 if value < 10 else 0}f}x"
    reached = [goal for goal in ("aim", "must") if goal in goals
               and (value >= goals[goal] if unit == "x" else value <= goals[goal])]  # fmt: skip
    return [text, *cells, shown, *(reached or ["-"])[:1]]


FIRST_CALLS = """\
This table has one row per arm, at the longest length measured: wall time of the first call, error, peak memory beyond
weights and cache, and bytes of cached filters."""
CROSSOVERS = """\
This table says from which length on ours is faster. Between measured lengths, times are interpolated linearly in the
logarithms of length and time."""
LARGEST = {
    "forward": """\
This table has the length in tokens of the longest text that fits in a memory of this size. It was computed, not run:
weights and peak are extended by a straight line through the measured lengths, and 3 GB are set aside for our filter
cache, which is its default limit. Beyond 32768 tokens the longer position and filter tables are not counted.""",
    "training": """\
This table has the length in tokens of the longest text that fits in a memory of this size. It was computed, not run:
weights, gradients and activations, without optimizer state or checkpointing, are extended by a straight line through
the measured lengths. Beyond 32768 tokens the longer position and filter tables are not counted.""",
}


def speed_section(records: list[dict], lines: dict, device: str, mode: str) -> str:
    """Return the tables of one device and mode: times, first calls, crossovers, largest lengths."""
    times = time_table(records, device, mode)
    if not times or not lines:
        return times or "Not measured."
    first_calls = []
    for key, points in lines.items():
        length, record = max(points.items())
        error = "" if record["error"] is None else f"{record['error']:.1e}"
        memory = [bytes_text(record["peak_bytes"]), bytes_text(record["cache_bytes"])]
        first_calls.append([" ".join(key), str(length), seconds_text(record["first_seconds"]), error, *memory])
    parts = [times, FIRST_CALLS, table(["arm", "length", "first call", "error", "peak", "cache"], first_calls)]
    ours = {key: points for key, points in lines.items() if key[0] in ("ours", "ours-graph")}
    others = {key: points for key, points in lines.items() if not key[0].startswith("ours")}
    if ours and others:
        rows = []
        for (arm, dtype), points in others.items():  # only the original is compared across dtypes
            comparable = {key: arm == "original" or key[1] == dtype for key in ours}
            cells = [crossover(ours[key], points) if fits else "" for key, fits in comparable.items()]
            rows.append([f"{arm} {dtype}", *cells])
        parts += [CROSSOVERS, table(["against", *map(" ".join, ours)], rows)]
    if any(point.get("peak_bytes") is not None for points in lines.values() for point in points.values()):
        rows = [[" ".join(key), *largest_lengths(points)] for key, points in lines.items()]
        parts += [LARGEST[mode], table(["arm", *(f"{capacity} GB" for capacity in CAPACITIES_GB)], rows)]
    return "\n\n".join(parts)


def crossover(ours: dict[int, dict], other: dict[int, dict]) -> str:
    """Return from which length on `ours` is faster, interpolated linearly in logarithms of length and time."""
    lengths = [length for length in ours if length in other]
    gains = [math.log(other[length]["seconds"] / ours[length]["seconds"]) for length in lengths]
    if not lengths:
        return "no common length"
    slower = [i for i, gain in enumerate(gains) if gain <= 0]
    if not slower:
        return "ours is faster at every length measured"
    if slower[-1] == len(lengths) - 1:
        return "ours is not faster at the longest length measured"
    ends = slice(slower[-1], slower[-1] + 2)
    return f"{round(math.exp(np.interp(0, gains[ends], np.log(lengths[ends]))))} tokens"


def largest_lengths(lengths: dict[int, dict]) -> list[str]:
    """Return a cell for each of CAPACITIES_GB: the largest length in tokens, by a line through (length, weights + peak)
    with relative errors and room for the filter cache; or why there is none."""
    measured = {length: record for length, record in lengths.items() if record["peak_bytes"] is not None}
    empty = [""] * (len(CAPACITIES_GB) - 1)
    if len(measured) < 3:
        return ["not measured at three lengths", *empty]
    totals = np.array([record["weight_bytes"] + record["peak_bytes"] for record in measured.values()], dtype=float)
    slope, intercept = np.polyfit([*measured], totals, 1, w=1 / totals)
    deviation = np.abs((intercept + slope * np.array([*measured]) - totals) / totals).max()
    if deviation > LARGEST_DEVIATION or slope <= 0:
        return [f"not linear in length (up to {deviation:.0%} off)", *empty]
    reserved = CACHE_BYTES if any(record["cache_bytes"] for record in lengths.values()) else 0
    found = [max(0, int((capacity * 1e9 - reserved - intercept) / slope)) for capacity in CAPACITIES_GB]
    return [f"{length:.2g}" if length < 100 else f"{round(length, 2 - len(str(length))):,}" for length in found]


def time_table(records: list[dict], device: str, mode: str) -> str:
    """Return seconds of every arm and batch at every length; batches of as many tokens share a row. Empty if there are
    none."""
    found = defaultdict(dict)
    for record in records:
        if (record["device"], record["mode"]) == (device, mode) and "op" not in record:
            batch = "1" if record["batch"] == 1 else f"{record['tokens']} tokens"
            found[record["arm"], record["dtype"], batch][record["length"]] = record
    for (arm, dtype, batch), points in found.items():  # a batch of one is also a batch of so many tokens
        for length, record in found.get((arm, dtype, "1"), {}).items():
            if batch == f"{length} tokens":
                points.setdefault(length, record)
    lengths = sorted({length for points in found.values() for length in points})
    rows = [
        [f"{arm} {dtype}", batch, *(seconds_text(points[n]["seconds"]) if n in points else "" for n in lengths)]
        for (arm, dtype, batch), points in sorted(found.items(), key=lambda item: item[0][2] != "1")
    ]
    return table(["arm", "batch", *map(str, lengths)], rows) if rows else ""


def query_table(records: list[dict]) -> str:
    rows = [
        [f"{record['arm']} {record['dtype']}", DEVICES[record["device"]], record["mode"], str(record["batch"]),
         str(record["length"]), str(record["tokens"]), seconds_text(record["seconds"]), str(record["runs"])]
        for record in records
        if record["mode"] in ("query", "mixed", "alone")
    ]  # fmt: skip
    return table(["arm", "device", "what", "texts", "padded to", "real tokens", "time", "runs"], rows)


def operation_table(records: list[dict]) -> str:
    keys = ("op", "device", "dtype", "mode", "length", "batch")
    chosen = [(tuple(record[key] for key in keys), record) for record in records if "op" in record]
    plain = {key: record["seconds"] for key, record in chosen if record["arm"] == "plain"}
    rows = [
        [op, DEVICES[device], dtype, mode, f"{batch} x {length}", record["arm"], seconds_text(record["seconds"]),
         seconds_text(plain[key]), f"{plain[key] / record['seconds']:.2f}x", f"{record['error']:.1e}"]
        for key, record in chosen
        for op, device, dtype, mode, length, batch in [key]
        if record["arm"] != "plain" and key in plain
    ]  # fmt: skip
    header = ["operation", "device", "dtype", "mode", "rows x tokens", "arm", "time", "composite", "ratio", "error"]
    return table(header, rows)


# --- examples/demo_train.py ---


def demo_train(folder: Path):
    """Print nDCG@10 of the systems of the training demo, and what the trained model has more."""
    records = {record["encoder"].split(":")[0]: record for record in read(folder / "results.json")["results"]}
    rows = []
    for name, label in plots.TRAINED_LABELS.items():
        difference = difference_text(records[name], records["m2bert-demo"]) if name != "m2bert-demo" else ""
        rows.append([label, score(records[name]), difference])
    header = ["nDCG@10 on packages never seen in training", "points (95 % interval)", "trained minus this, paired"]
    print(f"\n{table(header, rows)}\n")
    print("This model is small and from scratch: minutes of one CPU core on documentation strings. The rows around it\n"
          "show what each part is worth; BM25 is the bar that a real model has to pass.")  # fmt: skip
    plots.demo_train(folder, records, folder / "demo.png")


PAGES = {"results": results, "suite": suite, "replicas": replicas, "performance": performance}


def main(argv: list[str]):
    match argv:
        case ["demo-train", folder]:
            demo_train(Path(folder))
        case names if {*names} <= PAGES.keys():
            for name in names or PAGES:
                PAGES[name]()
        case _:
            raise SystemExit(f"pages: {' '.join(argv)} is none of the commands\n{__doc__}")


if __name__ == "__main__":
    main(sys.argv[1:])
