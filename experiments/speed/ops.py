"""Time of single operations: ours against plain composites of PyTorch functions.

    python experiments/speed/ops.py --output ops.json

The composite of the long convolution is a float32 real FFT with cached spectra. Outputs are compared with the composite
in float64 before anything is timed; a wrong operation stops the run with status 1.
"""

import os
import sys
from pathlib import Path

import torch
from arms import base_model
from command import (
    DTYPES,
    BadArgument,
    Parser,
    bytes_text,
    check_counts,
    check_output,
    choose_device,
    circumstances,
    main_of,
    positive_integers,
    quantiles,
    seconds_text,
    table,
    write_json,
)
from gate import RedGate, relative_error
from measure import clock_name, cuda_peak_bytes, interleave, timed, wall_timed, warm_up
from op_cases import CASES, Case, Sizes
from tqdm import tqdm

BOUNDS = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1e-2}  # several times the rounding of the composite
KERNELS = {"cpu": {"ours": "auto"}, "cuda": {"ours": "auto", "ours-torch": "torch"}}
ROUNDS = {"cpu": 5, "cuda": 50}


def parse():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--ops", default=",".join(CASES), help="comma-separated operations")
    parser.add_argument("--lengths", default="2048,8192,32768", help="tokens per row, comma-separated")
    parser.add_argument("--batch-tokens", type=int, default=32768, help="tokens per batch: as many rows as fit")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument(
        "--mode", choices=("forward", "training"), default="forward", help="training: forward and backward"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; with one, CPU time is measured")
    parser.add_argument("--rounds", type=int, help="turns per operation (default: 5 on a CPU, 50 on a GPU)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of records")
    return parser.parse_args()


class OpBench:
    """Times the arms of one case after another."""

    def __init__(self, options):
        self.device = choose_device(options.device, options.threads)
        self.dtype = options.dtype or ("bfloat16" if self.device == "cuda" else "float32")
        self.training = options.mode == "training"
        self.mode = options.mode
        self.rounds = options.rounds or ROUNDS[self.device]
        self.lengths = positive_integers("--lengths", options.lengths)
        self.batch_tokens = options.batch_tokens
        if self.batch_tokens < self.lengths[-1]:
            raise BadArgument(f"--batch-tokens={self.batch_tokens} is below the longest of --lengths; raise it")
        self.layer = base_model(self.lengths[-1], 1).layers[0].to(self.device)

    def records(self, op: str, length: int, advance) -> list[dict]:
        batch = self.batch_tokens // length
        case = CASES[op](Sizes(self.layer, batch, length, DTYPES[self.dtype], self.training))
        runs = {arm: self._run_of(case, arm) for arm in (*KERNELS[self.device], "plain")}
        firsts, errors = self._check(op, length, case, runs)
        for run in runs.values():
            warm_up(run) if self.device == "cuda" else run()
        cuda = self.device == "cuda"
        peaks = {arm: cuda_peak_bytes(run) if cuda else None for arm, run in runs.items()}
        turns = {arm: lambda run=run: timed(run, self.device)[0] for arm, run in runs.items()}
        seconds = interleave(turns, self.rounds, 120, advance)
        return [
            {"op": op, "arm": arm, "dtype": self.dtype, "length": length, "batch": batch, "tokens": batch * length}
            | {"mode": self.mode}
            | circumstances(self.device)
            | dict(zip(("seconds", "quantiles"), quantiles(values), strict=True))
            | {"clock": clock_name(self.device), "runs": len(values), "first_seconds": firsts[arm]}
            | {"error": errors[arm], "peak_bytes": peaks[arm], "cache_bytes": None}
            for arm, values in seconds.items()
        ]

    def _run_of(self, case: Case, arm: str):
        """The arm's operation, with its backward in training."""
        compute, leaves = (case.plain, case.plain_leaves) if arm == "plain" else (case.ours, case.ours_leaves)

        def run():
            os.environ["M2BERT_KERNELS"] = KERNELS[self.device].get(arm, "auto")
            with torch.set_grad_enabled(self.training):
                outputs = compute()
                if self.training:
                    torch.autograd.grad(outputs, leaves, outputs)
            return outputs

        return run

    def _check(self, op: str, length: int, case: Case, runs: dict) -> tuple[dict, dict]:
        """Wall seconds of every arm's first call, and its error; raises gate.RedGate."""
        with torch.no_grad():
            exact = case.exact()
        firsts, errors = {}, {}
        for arm, run in runs.items():
            firsts[arm], outputs = wall_timed(run, self.device)
            errors[arm] = max(map(relative_error, (x.detach() for x in outputs), exact))
            if not errors[arm] <= BOUNDS[self.dtype]:
                raise RedGate(
                    f"{op} at {length} tokens: error {errors[arm]:.2e} of {arm} is above {BOUNDS[self.dtype]:.0e}"
                )
        return firsts, errors


def summary(records: list[dict]) -> str:
    plain = {(record["op"], record["length"]): record["seconds"] for record in records if record["arm"] == "plain"}
    header = ["operation", "arm", "length", "batch", "seconds", "plain / this", "first", "error", "peak"]
    rows = [
        [record["op"], record["arm"], str(record["length"]), str(record["batch"]), seconds_text(record["seconds"])]
        + [f"{plain[record['op'], record['length']] / record['seconds']:.2f}", seconds_text(record["first_seconds"])]
        + [f"{record['error']:.1e}", bytes_text(record["peak_bytes"])]
        for record in records
    ]
    return table(header, rows)


def main() -> int:
    options = parse()
    names = options.ops.split(",")
    for name in names:
        if name not in CASES:
            raise BadArgument(f"--ops: operation {name!r} is unknown; choose from {', '.join(CASES)}")
    check_counts(options, "batch_tokens", "rounds", "threads")
    check_output(options.output)
    bench = OpBench(options)
    records: list[dict] = []
    calls = len(names) * len(bench.lengths) * bench.rounds * (1 + len(KERNELS[bench.device]))
    try:
        with tqdm(total=calls, unit="call") as bar:
            for name in names:
                for length in bench.lengths:
                    bar.set_description(f"{name} {length}")
                    records += bench.records(name, length, bar.update)
                    write_json(options.output, records)
    except RedGate as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    finally:
        if records:
            print(summary(records))
    return 0


if __name__ == "__main__":
    main_of(main)
