"""What short texts cost: a query alone, and texts of mixed lengths in one batch.

    python experiments/speed/query.py --output query.json

The original algorithm pads a query to its full context, 32768 tokens, as its released retrieval models do; that call is
made as often as `--original-rounds` says, and nothing is extrapolated. Our overhead of padding is the time of a padded
batch of mixed lengths over the sum of its texts alone: the same real tokens, so their quotient is per real token.
"""

import sys
from pathlib import Path

import torch
from arms import Arm, Runner, build, parse_arms, token_ids
from command import (
    BadArgument,
    Parser,
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
from gate import Gate, RedGate
from measure import clock_name, interleave, timed, warm_up
from tqdm import tqdm

MIXED_LENGTHS = "64,128,192,256,384,512,768,1024"
ROUNDS = {"cpu": 9, "cuda": 50}


def parse():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--arms", default="ours:float32,ours:bfloat16", help="of ours, comma-separated")
    parser.add_argument("--tokens", type=int, default=32, help="of the query")
    parser.add_argument("--context", type=int, default=32768, help="to which the original pads")
    parser.add_argument("--original-rounds", type=int, default=1, help="calls of the padded original; 0: none")
    parser.add_argument("--mixed-lengths", default=MIXED_LENGTHS, help="tokens of the texts of the mixed batch")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; with one, CPU time is measured")
    parser.add_argument("--layers", type=int, help="depth (quick looks); default: the published one")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of records")
    return parser.parse_args()


class QueryBench:
    """Our arms and the original with shared weights, on one device."""

    def __init__(self, options):
        check_counts(options, "layers", "threads")
        self.device = choose_device(options.device, options.threads)
        self.mixed = positive_integers("--mixed-lengths", options.mixed_lengths)
        self.tokens, self.context, self.layers = options.tokens, options.context, options.layers
        if not 1 <= self.tokens <= self.context:
            raise BadArgument(f"--tokens={self.tokens} must lie between 1 and --context={self.context}")
        if options.original_rounds < 0:
            raise BadArgument(f"--original-rounds={options.original_rounds} must be 0 or more")
        arms = parse_arms(options.arms, "float32", self.device, [self.tokens, *self.mixed])
        for arm in arms:
            if not arm.is_ours:
                raise BadArgument(f"--arms: {arm} is not ours; the original is measured anyway, drop it")
        original = Arm("original", "float32" if self.device == "cpu" else "bfloat16")
        longest = max(self.context, *self.mixed)
        (*self.ours, self.original), self.base = build([*arms, original], self.device, longest, self.layers)

    def gate(self) -> None:
        """Raises gate.RedGate."""
        ids = token_ids(1, self.tokens, self.device)
        Gate(self.base, self.device, training=False).check([*self.ours, self.original], ids, lambda: None)

    @torch.no_grad()
    def query(self, runner: Runner) -> dict:
        ids = token_ids(1, self.tokens, self.device)
        runner.prepare(ids)
        seconds = self._median({"query": lambda: runner.forward(ids)})["query"]
        return self._record(runner, "query", 1, self.tokens, self.tokens, seconds)

    @torch.no_grad()
    def padded_query(self, rounds: int) -> dict:
        """The original on a query padded with id 0; its first call is timed too."""
        ids = torch.nn.functional.pad(token_ids(1, self.tokens, self.device), (0, self.context - self.tokens))
        seconds = [timed(lambda: self.original.forward(ids), self.device)[0] for _ in range(rounds)]
        return self._record(self.original, "query", 1, self.context, self.tokens, seconds)

    @torch.no_grad()
    def mixed_batch(self, runner: Runner) -> list[dict]:
        """A padded batch, and its texts one by one."""
        lengths = torch.tensor(self.mixed, device=self.device)
        ids = token_ids(len(lengths), max(self.mixed), self.device)
        mask = (torch.arange(ids.shape[1], device=self.device) < lengths[:, None]).long()

        def batch():
            return runner.forward(ids * mask, attention_mask=mask)

        def alone():
            return [runner.forward(row[None, :length]) for row, length in zip(ids, self.mixed, strict=True)]

        seconds = self._median({"mixed": batch, "alone": alone})
        real = sum(self.mixed)
        return [self._record(runner, mode, *ids.shape, real, values) for mode, values in seconds.items()]

    def _median(self, calls: dict) -> dict[str, list[float]]:
        for call in calls.values():
            warm_up(call) if self.device == "cuda" else call()
        turns = {name: lambda call=call: timed(call, self.device)[0] for name, call in calls.items()}
        return interleave(turns, ROUNDS[self.device], 120, lambda: None)

    def _record(self, runner: Runner, mode: str, batch: int, length: int, tokens: int, values: list[float]) -> dict:
        middle, spread = quantiles(values)
        return {
            "arm": runner.arm.name,
            "dtype": runner.arm.dtype,
            "mode": mode,
            "length": length,
            "batch": batch,
            "tokens": tokens,
            "layers": len(self.base.layers),
            "shallow": self.layers is not None,
            "clock": clock_name(self.device),
            "seconds": middle,
            "quantiles": spread,
            "runs": len(values),
        } | circumstances(self.device)


def summary(records: list[dict]) -> str:
    header = ["arm", "what", "row", "batch", "real tokens", "seconds", "runs"]
    rows = [
        [f"{record['arm']}:{record['dtype']}", record["mode"]]
        + [str(record[field]) for field in ("length", "batch", "tokens")]
        + [seconds_text(record["seconds"]), str(record["runs"])]
        for record in records
    ]
    return table(header, rows)


def main() -> int:
    options = parse()
    check_output(options.output)
    bench = QueryBench(options)
    records: list[dict] = []
    jobs = [lambda runner=runner: [bench.query(runner)] for runner in bench.ours]
    jobs += [lambda runner=runner: bench.mixed_batch(runner) for runner in bench.ours if runner.takes_any_shape]
    if options.original_rounds:
        jobs.append(lambda: [bench.padded_query(options.original_rounds)])
    try:
        bench.gate()
        for job in tqdm(jobs):
            records += job()
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
