"""The performance page and its plot, from records.

    python experiments/speed/report.py *.json --output docs/performance.md --plot docs/performance.png

Where several records answer one question, the one given last counts.
"""

import json
import os
from pathlib import Path

import plot
from analysis import CAPACITIES_GB, crossover, largest_lengths, series
from command import BadArgument, Parser, bytes_text, check_output, main_of, seconds_text
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from questions import QUESTIONS, Question
from shapes import SHAPES

SECTIONS = {
    ("cpu", "forward"): "Forward on a CPU",
    ("cpu", "training"): "Forward and backward on a CPU",
    ("cuda", "forward"): "Forward on a GPU",
    ("cuda", "training"): "Forward and backward on a GPU",
}


def parse():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("records", type=Path, nargs="+", help="JSON files of forward.py, ops.py and query.py")
    parser.add_argument("--output", type=Path, required=True, help="Markdown page")
    parser.add_argument("--plot", type=Path, required=True, help="PNG beside it")
    return parser.parse_args()


def load(paths: list[Path]) -> list[dict]:
    """Records of all files; those of shallow models only where there are no others.

    Raises:
        BadArgument: a file that is missing or holds no records.
    """
    records = []
    for path in paths:
        try:
            found = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise BadArgument(f"records={path} cannot be read ({error}); give JSON files of the benchmarks") from None
        if not isinstance(found, list) or not all(isinstance(record, dict) and "arm" in record for record in found):
            raise BadArgument(f"records={path} is no list of records; give JSON files of the benchmarks")
        records += [record | {"run": str(path)} for record in found]
    if not records:
        raise BadArgument(f"records={', '.join(map(str, paths))} hold nothing; run the benchmarks first")
    deep = [record for record in records if not record.get("shallow")]
    return deep if any("op" not in record for record in deep) else records


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def circumstances(records: list[dict]) -> str:
    fields = ("processor", "device", "threads", "torch", "commit", "date")
    rows = dict.fromkeys(tuple(str(record[field]) for field in fields) for record in records)
    return markdown(list(fields), [list(row) for row in rows])


def value_text(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3g} {unit}" if unit in ("ms", "GB") else f"{value:.{2 if value < 10 else 0}f}x"


def question_row(question: Question, records: list[dict]) -> list[str]:
    value = question.answer(records)
    verdict = ""
    if value is not None:

        def reached(goal):
            return value >= goal if question.more_is_better else value <= goal

        verdict = "-"
        if reached(question.must):
            verdict = "aim" if question.aim is not None and reached(question.aim) else "must"
    goals = [
        "" if goal is None else f"{goal:g} {question.unit}".replace(" x", "x") for goal in (question.must, question.aim)
    ]
    device = plot.DEVICES[question.device]
    return [f"{device}: {question.text}", *(goal.removesuffix(" overhead") for goal in goals),
            value_text(value, question.unit), verdict]  # fmt: skip


def section(records: list[dict], device: str, mode: str) -> dict | None:
    """What the template needs of one device and mode; None where nothing was measured."""
    lines = series(records, device, mode)
    rows, lengths = time_rows(records, device, mode)
    if not rows:
        return None
    title = SECTIONS[device, mode]
    result = {"title": title, "training": mode == "training", "firsts": "", "crossovers": "", "largest": ""}
    result["table"] = markdown(["arm", "batch", *(str(length) for length in lengths)], rows)
    if not lines:
        return result
    details = [[f"{arm} {dtype}", *detail_cells(points)] for (arm, dtype), points in lines.items()]
    result["firsts"] = markdown(["arm", "length", "first call", "error", "peak", "cache"], details)
    ours = {key: points for key, points in lines.items() if key[0] in ("ours", "ours-graph")}
    others = {key: points for key, points in lines.items() if not key[0].startswith("ours")}
    if ours and others:
        result["crossovers"] = markdown(
            ["against", *(" ".join(key) for key in ours)],
            [[" ".join(key), *crossover_cells(ours, key, points)] for key, points in others.items()],
        )
    if any(
        "peak_bytes" in point and point["peak_bytes"] is not None
        for points in lines.values()
        for point in points.values()
    ):
        result["largest"] = markdown(
            ["arm", *(f"{capacity} GB" for capacity in CAPACITIES_GB)],
            [[" ".join(key), *largest_cells(largest_lengths(points))] for key, points in lines.items()],
        )
    return result


def time_rows(records: list[dict], device: str, mode: str) -> tuple[list[list[str]], list[int]]:
    """Rows of arm, batch and seconds at every length measured, and these lengths. Batches of a fixed number of tokens
    share a row."""
    found: dict[tuple, dict[int, dict]] = {}
    for record in records:
        if (record["device"], record["mode"]) == (device, mode) and "op" not in record:
            batch = "1" if record["batch"] == 1 else f"{record['tokens']} tokens"
            found.setdefault((record["arm"], record["dtype"], batch), {})[record["length"]] = record
    for (arm, dtype, batch), points in found.items():
        for other, more in found.items():  # a batch of one is also a batch of so many tokens
            if other[:2] == (arm, dtype) and other[2] == "1":
                points |= {n: r for n, r in more.items() if f"{n} tokens" == batch and n not in points}
    lengths = sorted({length for points in found.values() for length in points})
    rows = [
        [f"{arm} {dtype}", batch, *(seconds_text(points[n]["seconds"]) if n in points else "" for n in lengths)]
        for (arm, dtype, batch), points in sorted(found.items(), key=lambda item: item[0][2] != "1")
    ]
    return rows, lengths


def crossover_cells(ours: dict, other: tuple[str, str], points: dict[int, dict]) -> list[str]:
    """Crossover of every arm of ours with another; only the original is compared across dtypes."""
    comparable = [dtype == other[1] or other[0] == "original" for _, dtype in ours]
    return [crossover(mine, points) if fits else "" for mine, fits in zip(ours.values(), comparable, strict=True)]


def detail_cells(points: dict[int, dict]) -> list[str]:
    length, record = max(points.items())
    error = "" if record["error"] is None else f"{record['error']:.1e}"
    cells = [
        seconds_text(record["first_seconds"]),
        error,
        bytes_text(record["peak_bytes"]),
        bytes_text(record["cache_bytes"]),
    ]
    return [str(length), *("" if cell == "-" else cell for cell in cells)]


def largest_cells(lengths: list[int] | str) -> list[str]:
    if isinstance(lengths, str):
        return [lengths] + [""] * (len(CAPACITIES_GB) - 1)
    return [f"{length:.2g}" if length < 100 else f"{round(length, 2 - len(str(length))):,}" for length in lengths]


def queries(records: list[dict]) -> str:
    chosen = [record for record in records if record["mode"] in ("query", "mixed", "alone")]
    if not chosen:
        return ""
    rows = [
        [f"{record['arm']} {record['dtype']}", plot.DEVICES[record["device"]], record["mode"], str(record["batch"])]
        + [str(record["length"]), str(record["tokens"]), seconds_text(record["seconds"]), str(record["runs"])]
        for record in chosen
    ]
    return markdown(["arm", "device", "what", "texts", "padded to", "real tokens", "time", "runs"], rows)


def operations(records: list[dict]) -> str:
    chosen = [record for record in records if "op" in record]
    if not chosen:
        return ""
    keys = ("op", "device", "dtype", "mode", "length", "batch")
    plain = {tuple(record[key] for key in keys): record["seconds"] for record in chosen if record["arm"] == "plain"}
    rows = []
    for record in chosen:
        key = tuple(record[key] for key in keys)
        if record["arm"] != "plain" and key in plain:
            cells = [record["op"], plot.DEVICES[record["device"]], record["dtype"], record["mode"]]
            cells += [f"{record['batch']} x {record['length']}", record["arm"], seconds_text(record["seconds"])]
            cells += [seconds_text(plain[key]), f"{plain[key] / record['seconds']:.2f}x", f"{record['error']:.1e}"]
            rows.append(cells)
    header = ["operation", "device", "dtype", "mode", "rows x tokens", "arm", "time", "composite", "ratio", "error"]
    return markdown(header, rows)


def page(records: list[dict], plot_name: str) -> str:
    sections = {title: section(records, *key) for key, title in SECTIONS.items()}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("report.md.jinja").render(
        circumstances=circumstances(records),
        shallow=any(record.get("shallow") for record in records),
        plot=plot_name,
        shapes=[(name, shape.description) for name, shape in SHAPES.items()],
        questions=markdown(
            ["", "must", "aim", "measured", "reached"], [question_row(question, records) for question in QUESTIONS]
        ),
        sections=[found for found in sections.values() if found],
        missing=[title for title, found in sections.items() if not found],
        queries=queries(records),
        operations=operations(records),
    )
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip() + "\n"


def main() -> int:
    options = parse()
    check_output(options.output)
    records = load(options.records)
    plot.draw({key: series(records, *key) for key in SECTIONS}, options.plot)
    options.output.write_text(page(records, os.path.relpath(options.plot, options.output.parent)))
    print(f"{options.output}: {len(records)} records")
    return 0


if __name__ == "__main__":
    main_of(main)
