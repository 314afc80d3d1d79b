"""Time and memory of whole models: ours, the original algorithm, and attention encoders, in one run.

    python experiments/speed/forward.py --arms ours:bfloat16,original:float32 --lengths 512,2048 --output forward.json

Arms take turns; each is checked against the original algorithm in float64 before anything is timed, and a wrong one
stops the run with status 1. Every length is written to the output as soon as it is finished.
"""

import sys
from pathlib import Path

from arms import NAMES, parse_arms
from bench import Bench
from command import (
    DTYPES,
    BadArgument,
    Parser,
    bytes_text,
    check_counts,
    check_output,
    choose_device,
    main_of,
    positive_integers,
    seconds_text,
    table,
    write_json,
)
from gate import RedGate
from tqdm import tqdm

ROUNDS = {"cpu": 5, "cuda": 50}


def parse():
    parser = Parser(description=__doc__.split("\n")[0], epilog=f"arms: {', '.join(NAMES)}; each with :dtype if wanted")
    parser.add_argument("--arms", default="ours,original", help="comma-separated name or name:dtype")
    parser.add_argument("--lengths", default="512,2048", help="tokens per row, comma-separated")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of arms that name none")
    parser.add_argument(
        "--mode", choices=("forward", "training"), default="forward", help="training: forward and backward"
    )
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--batch", type=int, default=1, help="rows per batch")
    batch.add_argument("--batch-tokens", type=int, help="tokens per batch instead: as many rows as fit")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; with one, CPU time is measured")
    parser.add_argument("--layers", type=int, help="depth of every arm (quick looks); default: the published ones")
    parser.add_argument("--rounds", type=int, help="turns per length (default: 5 on a CPU, 50 on a GPU)")
    parser.add_argument("--budget-seconds", type=float, default=300, help="per length; after it three turns are enough")
    parser.add_argument(
        "--max-seconds", type=float, default=600, help="leave an arm out where a call would take longer"
    )
    parser.add_argument("--memory", action="store_true", help="on a CPU: peak memory too, each in a fresh process")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of records")
    return parser.parse_args()


def make_bench(options) -> Bench:
    check_counts(options, "batch", "batch_tokens", "layers", "rounds", "threads")
    device = choose_device(options.device, options.threads)
    lengths = positive_integers("--lengths", options.lengths)
    if options.batch_tokens is not None and options.batch_tokens < lengths[-1]:
        raise BadArgument(f"--batch-tokens={options.batch_tokens} is below the longest of --lengths; raise it")
    check_output(options.output)

    def batch_of(length: int) -> int:
        return options.batch if options.batch_tokens is None else options.batch_tokens // length

    return Bench(
        arms=parse_arms(options.arms, options.dtype, device, lengths, options.mode),
        device=device,
        mode=options.mode,
        batch_of=batch_of,
        lengths=lengths,
        layers=options.layers,
        rounds=options.rounds or ROUNDS[device],
        budget_seconds=options.budget_seconds,
        max_seconds=options.max_seconds,
        measure_memory=options.memory,
    )


def summary(records: list[dict]) -> str:
    header = ["arm", "length", "batch", "seconds", "10 %", "90 %", "runs", "first", "error", "peak", "cache"]
    rows = []
    for record in records:
        error = "-" if record["error"] is None else f"{record['error']:.1e}"
        rows.append(
            [f"{record['arm']}:{record['dtype']}", str(record["length"]), str(record["batch"])]
            + [seconds_text(value) for value in (record["seconds"], *record["quantiles"])]
            + [str(record["runs"]), seconds_text(record["first_seconds"]), error]
            + [bytes_text(record["peak_bytes"]), bytes_text(record["cache_bytes"])]
        )
    return table(header, rows)


def main() -> int:
    options = parse()
    bench = make_bench(options)
    records: list[dict] = []
    try:
        planned = bench.gate_tokens()
        total = planned + sum(map(bench.tokens_at, bench.lengths))
        with tqdm(total=total, unit="tok", unit_scale=True, desc="gate", smoothing=0) as bar:
            verdicts = bench.gate(bar.update)
            for length in bench.lengths:
                bar.set_description(f"{length} tokens")
                records += bench.measure(length, verdicts.get(length, {}), bar.update)
                write_json(options.output, records)
                planned += bench.tokens_at(length)
                bar.update(planned - bar.n)  # turns that the budget cut, arms that were left out
    except (RedGate, FloatingPointError) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    finally:
        if records:
            print(summary(records))
    for line in bench.skipped:
        print(f"left out: {line}")
    return 0


if __name__ == "__main__":
    main_of(main)
