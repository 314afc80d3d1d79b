"""What short texts cost: a query alone, and texts of mixed lengths in one batch.

    python experiments/speed/query.py --output query.json

The original algorithm pads a query to its full context, 32768 tokens, as its released retrieval models do; that call is
made as often as `--original-rounds` says, and nothing is extrapolated. Our overhead of padding is the time of a padded
batch of mixed lengths over the sum of its texts alone: the same real tokens, so their quotient is per real token.
"""

from functools import partial

import torch
from arms import Arm, Gate, Runner, build, parse_arms, token_ids
from harness import interleave, make_parser, make_record, parse, positive, run_jobs, timed, token_lengths, warm_up

from m2bert.terminal import run_command

MIXED_LENGTHS = "64,128,192,256,384,512,768,1024"
ROUNDS = {"cpu": 9, "cuda": 50}
BUDGET_SECONDS = 120


class QueryBench:
    """Our arms and the original with shared weights, on one device."""

    def __init__(self, options):
        self.options, self.device, self.mixed = options, options.device, options.mixed_lengths
        arms = parse_arms(options.arms, "float32", self.device, [options.tokens, *self.mixed])
        if not all(arm.is_ours for arm in arms) or options.tokens > options.context:
            raise ValueError(f"--arms={options.arms} must be ours, --tokens={options.tokens} at most --context")
        original = Arm("original", "float32" if self.device == "cpu" else "bfloat16")
        longest = max(options.context, *self.mixed)
        (*self.ours, self.original), self.base = build([*arms, original], self.device, longest, options.layers)

    def check(self) -> list[dict]:
        """Compare the arms with the reference; raise RedGate if one is wrong."""
        ids = token_ids(1, self.options.tokens, self.device)
        Gate(self.base, self.device, training=False).check([*self.ours, self.original], ids)
        return []

    @torch.no_grad()
    def query(self, runner: Runner) -> list[dict]:
        """Measure one of our arms on a query."""
        ids = token_ids(1, self.options.tokens, self.device)
        runner.prepare(ids)
        return self._records(runner, {"query": lambda: runner.forward(ids)}, 1, ids.numel(), ids.numel())

    @torch.no_grad()
    def padded_query(self) -> list[dict]:
        """Measure the original on a query padded with id 0; its first call is timed too."""
        tokens, context = self.options.tokens, self.options.context
        ids = torch.nn.functional.pad(token_ids(1, tokens, self.device), (0, context - tokens))
        rounds = range(self.options.original_rounds)
        seconds = [timed(lambda: self.original.forward(ids), self.device)[0] for _ in rounds]
        return [self._record(self.original, "query", 1, context, tokens, seconds)] if seconds else []

    @torch.no_grad()
    def mixed_batch(self, runner: Runner) -> list[dict]:
        """Measure a padded batch, and its texts one by one."""
        lengths = torch.tensor(self.mixed, device=self.device)
        ids = token_ids(len(lengths), max(self.mixed), self.device)
        mask = (torch.arange(ids.shape[1], device=self.device) < lengths[:, None]).long()

        def batch():
            return runner.forward(ids * mask, attention_mask=mask)

        def alone():
            return [runner.forward(row[None, :length]) for row, length in zip(ids, self.mixed, strict=True)]

        return self._records(runner, {"mixed": batch, "alone": alone}, *ids.shape, sum(self.mixed))

    def _records(self, runner: Runner, calls: dict, batch: int, length: int, tokens: int) -> list[dict]:
        for call in calls.values():
            warm_up(call, self.device)
        turns = {mode: lambda call=call: timed(call, self.device)[0] for mode, call in calls.items()}
        seconds = interleave(turns, ROUNDS[self.device], BUDGET_SECONDS, str(runner.arm))
        return [self._record(runner, mode, batch, length, tokens, values) for mode, values in seconds.items()]

    def _record(self, runner: Runner, mode: str, batch: int, length: int, tokens: int, values: list[float]) -> dict:
        arm, layers, shallow = runner.arm, len(self.base.layers), self.options.layers is not None
        return make_record(self.device, values, arm=arm.name, dtype=arm.dtype, mode=mode, length=length, batch=batch,
                           tokens=tokens, layers=layers, shallow=shallow)  # fmt: skip


def main():
    parser = make_parser(__doc__.split("\n")[0])
    parser.add_argument("--arms", default="ours:float32,ours:bfloat16", help="of ours, comma-separated")
    parser.add_argument("--tokens", type=positive, default=32, help="of the query")
    parser.add_argument("--context", type=positive, default=32768, help="to which the original pads")
    parser.add_argument("--original-rounds", type=int, default=1, help="calls of the padded original; 0: none")
    parser.add_argument("--mixed-lengths", type=token_lengths, default=MIXED_LENGTHS, help="tokens of the mixed batch")
    parser.add_argument("--layers", type=positive, help="depth (quick looks); default: the published one")
    bench = QueryBench(parse(parser))
    jobs = [bench.check, *(partial(bench.query, runner) for runner in bench.ours)]
    jobs += [partial(bench.mixed_batch, runner) for runner in bench.ours if runner.takes_any_shape]
    run_jobs([*jobs, bench.padded_query], bench.options.output)


if __name__ == "__main__":
    run_command("query", main)
