"""What short texts cost: a query alone, and texts of mixed lengths in one batch.

    python experiments/speed/query.py --output query.json

The original algorithm pads a query to its full context, 32768 tokens, as its released retrieval models do; that call is
made as often as `--original-rounds` says, and nothing is extrapolated. Our overhead of padding is the time of a padded
batch of mixed lengths over the sum of its texts alone: the same real tokens, so their quotient is per real token.
"""

from collections.abc import Callable, Iterator
from functools import partial

import harness
import torch
from arms import Arm, Gate, Runner, build, parse_arms, token_ids

from m2bert.terminal import run_command

ROUNDS = {"cpu": 9, "cuda": 50}
BUDGET_SECONDS = 120


def jobs(options, runners: list[Runner], base) -> Iterator[Callable[[], list[dict]]]:
    """Yield what is measured. Arms that are not right on a query are recorded as red, and not measured."""
    ids = token_ids(1, options.tokens, options.device)
    verdicts = Gate(base, options.device, training=False).check(runners, ids)
    red = {runner: verdicts[runner.arm]["red"] for runner in runners if verdicts[runner.arm]["red"]}
    *ours, original = (None if runner in red else runner for runner in runners)
    ours = [runner for runner in ours if runner is not None]
    yield from (partial(wrong, options, runner, text) for runner, text in red.items())
    yield from (partial(query, options, runner) for runner in ours)
    yield from (partial(mixed_batch, options, runner) for runner in ours if runner.takes_any_shape)
    if original is not None:
        yield partial(padded_query, options, original)


def wrong(options, runner: Runner, red: str) -> list[dict]:
    return [record | {"red": red} for record in records(options, runner, {"query": []}, 1, options.tokens, 0)]


@torch.no_grad()
def query(options, runner: Runner) -> list[dict]:
    """Measure one of our arms on a query."""
    ids = token_ids(1, options.tokens, options.device)
    runner.prepare(ids)
    return measure(options, runner, {"query": lambda: runner.forward(ids)}, 1, ids.numel(), ids.numel())


@torch.no_grad()
def mixed_batch(options, runner: Runner) -> list[dict]:
    """Measure a padded batch, and its texts one by one."""
    lengths = torch.tensor(options.mixed_lengths, device=options.device)
    ids = token_ids(len(lengths), max(options.mixed_lengths), options.device)
    mask = (torch.arange(ids.shape[1], device=options.device) < lengths[:, None]).long()

    def batch():
        return runner.forward(ids * mask, attention_mask=mask)

    def alone():
        return [runner.forward(row[None, :length]) for row, length in zip(ids, options.mixed_lengths, strict=True)]

    return measure(options, runner, {"mixed": batch, "alone": alone}, *ids.shape, sum(options.mixed_lengths))


@torch.no_grad()
def padded_query(options, original: Runner) -> list[dict]:
    """Measure the original on a query padded with id 0; its first call is timed too."""
    padding = options.context - options.tokens
    ids = torch.nn.functional.pad(token_ids(1, options.tokens, options.device), (0, padding))
    rounds = range(options.original_rounds)
    seconds = {"query": [harness.timed(lambda: original.forward(ids), options.device)[0] for _ in rounds]}
    return records(options, original, seconds, 1, options.context, options.tokens) if rounds else []


def measure(options, runner: Runner, calls: dict, *sizes: int) -> list[dict]:
    """Return records of calls that take turns."""
    for call in calls.values():
        harness.warm_up(call, options.device)
    turns = {mode: lambda call=call: harness.timed(call, options.device)[0] for mode, call in calls.items()}
    seconds, red = harness.interleave(turns, ROUNDS[options.device], BUDGET_SECONDS, str(runner.arm))
    found = records(options, runner, seconds | dict.fromkeys(red, []), *sizes)
    return [record | {"red": red.get(record["mode"])} for record in found]


def records(options, runner: Runner, seconds: dict, batch: int, length: int, tokens: int) -> list[dict]:
    return [
        harness.make_record(options.device, values, arm=runner.arm.name, dtype=runner.arm.dtype, mode=mode,
                            length=length, batch=batch, tokens=tokens, layers=runner.layers,
                            shallow=options.layers is not None)
        for mode, values in seconds.items()
    ]  # fmt: skip


def main():
    parser = harness.make_parser(__doc__.split("\n")[0])
    parser.add_argument("--arms", default="ours:float32,ours:bfloat16", help="of ours, comma-separated")
    parser.add_argument("--tokens", type=int, default=32, help="of the query")
    parser.add_argument("--context", type=int, default=32768, help="to which the original pads")
    parser.add_argument("--original-rounds", type=int, default=1, help="calls of the padded original; 0: none")
    parser.add_argument("--mixed-lengths", type=harness.token_lengths, default="64,128,192,256,384,512,768,1024")
    parser.add_argument("--layers", type=int, help="depth (quick looks); default: the published one")
    options = harness.parse(parser)
    arms = parse_arms(options.arms, "float32", options.device, [options.tokens, *options.mixed_lengths])
    if not all(arm.is_ours for arm in arms) or options.tokens > options.context:
        raise ValueError(f"--arms={options.arms} must be ours, --tokens={options.tokens} at most --context")
    arms.append(Arm("original", "float32" if options.device == "cpu" else "bfloat16"))
    longest = max(options.context, *options.mixed_lengths)
    runners, base = build(arms, options.device, longest, options.layers)
    harness.run_jobs(jobs(options, runners, base), options.output)


if __name__ == "__main__":
    run_command("query", main)
