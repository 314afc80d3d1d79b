"""Right or wrong: every operation on Triton's kernels against its PyTorch twin in float64, forward and backward.

    python experiments/speed/numerics.py --output numerics.json

Lengths are those on both sides of every switch between forms; rows are equally wide ("uniform", which kernels compile
for themselves) or not ("ragged", an empty row among them). Columns of padding hold NaN. Every case runs twice, the
second time in memory that holds NaN until it is written, and both runs must agree bit for bit.

An error is the norm of the difference over the norm of the reference, and the worst one is the largest difference over
the reference's root mean square, which shows a single wrong tile. Both are held to twice those of the twin in the same
dtype, and a floor for what kernels round besides: operands are float16 where activations have 16 bits.

A case that is wrong, moves or fails is recorded as red, and the run ends with status 1. With --jobs the cases run in
processes of their own, so that one that crashes or hangs loses the rest of its process only. Without a GPU the kernels
run in Triton's interpreter (TRITON_INTERPRET=1), for tiny sizes.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import NamedTuple

import harness
import torch
from arms import relative_error
from torch import Tensor

from m2bert.terminal import one_line, run_command
from modeling_m2bert import M2BertConfig
from modeling_m2bert import m2bert_ops as ops
from modeling_m2bert.m2bert_filter import M2BertFilter
from modeling_m2bert.m2bert_ops_dispatch import choose_kernels
from modeling_m2bert.m2bert_ops_filter import FilterCache, FilterParameters

LENGTHS = "1,16,17,255,256,257,512,513,1024,1025,2048,2049,4096,4097,8192,8193,10240,10241,16384,32768"
MOST_TOKENS = 8193  # of operations that do not mix positions: one more than the feed-forward network takes at once
FLOOR = {"float32": 2e-6, "float16": 1.5e-3, "bfloat16": 1.5e-3}
WORST = 20  # times the floor, for the worst value
DROPOUT = 0.1


class Case(NamedTuple):
    """One operation on ready inputs: what it is called, how it is called with tensors and the name of kernels, its
    tensors by name, and whether it has gradients and a twin (the dropout of the twin drops other values)."""

    name: str
    call: Callable[[dict[str, Tensor], str], Tensor | tuple[Tensor, ...]]
    tensors: dict[str, Tensor]
    has_gradients: bool = True
    has_twin: bool = True


class Sizes(NamedTuple):
    """What cases are made of; `length` is the longest row, or the number of tokens."""

    length: int
    dtype: torch.dtype
    device: str
    channels: int
    hidden: int

    def draw(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return (torch.randn(shape, device=self.device) * scale).to(dtype or self.dtype)

    def rows(self) -> Iterator[tuple[str, tuple[Tensor, Tensor, int], Tensor]]:
        """Yield a name, the rows (offsets, lengths, longest) and which columns are real."""
        n, third = self.length, self.length // 3
        equal = 17 if n <= 256 else 2  # above 16 rows the short form takes other tiles
        for name, slots, lengths in (
            ("uniform", [n] * equal, [n] * (equal - 1) + [n - third]),
            ("ragged", [n, third + 2, min(n, 3), 1] if n > 2 else [n, 1, 1], [n, third, 0, 1] if n > 2 else [n, 0, 1]),
        ):
            offsets = torch.tensor([0, *slots], device=self.device).cumsum(0).int()
            held = torch.tensor(lengths, dtype=torch.int32, device=self.device)
            t = torch.arange(sum(slots), device=self.device)[:, None]
            yield name, (offsets, held, n), ((t >= offsets[:-1]) & (t < offsets[:-1] + held)).any(1)


# --- the operations ---


def long_conv(sizes: Sizes) -> Iterator[Case]:
    """Yield the long convolution from taps and from the cache, with the residual one and without."""
    config = M2BertConfig(hidden_size=sizes.channels, max_position_embeddings=sizes.length, num_blocks=1)
    decay = torch.exp(-3 * torch.arange(sizes.length, device=sizes.device) / sizes.length)
    float32 = partial(sizes.draw, dtype=torch.float32)
    for name, rows, real in sizes.rows():
        signals = [sizes.draw(sizes.channels, len(real)) for _ in range(3)]
        signals = [torch.where(real, x, torch.nan).to(x.dtype) for x in signals]
        taps = [float32(2, sizes.channels, sizes.length, scale=0.3) * decay for _ in range(2)]
        skips = [float32(sizes.channels) for _ in range(2)]
        names = ("gated", "gate", "residual", "taps", "residual_taps", "skip", "residual_skip")
        tensors = dict(zip(names, (*signals, *taps, *skips), strict=True))

        def call(tensors, kernels, rows=rows, names=names):
            return ops.long_conv(*map(tensors.get, names), *rows, kernels)

        yield Case(f"long_conv {name}", call, tensors)
        alone = {name: value for name, value in tensors.items() if "residual" not in name}
        yield Case(f"long_conv {name} without residual", call, alone)

        filters = [M2BertFilter(config).to(sizes.device) for _ in range(2)]
        for each in filters:
            each.initialize(config)
            torch.nn.init.normal_(each.output_weight, std=0.1)
        cache = FilterCache(1)
        parameters = {
            f"{i} {field}": value.detach()
            for i, each in enumerate(filters)
            for field, value in each.parameters_for(sizes.length)._asdict().items()
        }

        def call_cached(tensors, kernels, rows=rows, names=names, cache=cache):
            fields = FilterParameters._fields
            sources = [FilterParameters(*(tensors[f"{i} {field}"] for field in fields)) for i in range(2)]
            signals, skips = (
                map(tensors.get, ("gated", "gate", "residual")),
                (tensors["skip"], tensors["residual_skip"]),
            )
            return ops.cached_long_conv(*signals, *sources, *skips, *rows, [cache.handle, 1], kernels)

        signals_and_skips = {name: value for name, value in tensors.items() if "taps" not in name}
        yield Case(f"cached_long_conv {name}", call_cached, signals_and_skips | parameters, has_gradients=False)


def short_conv_gate(sizes: Sizes) -> Iterator[Case]:
    for name, rows, real in sizes.rows():
        projected = torch.where(real, sizes.draw(3 * sizes.channels, len(real)), torch.nan).to(sizes.dtype)
        tensors = {"projected": projected, "projection_bias": sizes.draw(3 * sizes.channels)}
        tensors |= {"weight": sizes.draw(3 * sizes.channels, 3), "bias": sizes.draw(3 * sizes.channels)}

        def call(tensors, kernels, rows=rows):
            return ops.short_conv_gate(*tensors.values(), *rows, kernels)

        yield Case(f"short_conv_gate {name}", call, tensors)


def block_diagonal_glu(sizes: Sizes) -> Iterator[Case]:
    """Yield the feed-forward network with one, two and four blocks. With four, x stays in shared memory."""
    if sizes.length > MOST_TOKENS:
        return
    x, bias = sizes.draw(sizes.length, sizes.hidden), sizes.draw(sizes.hidden)
    for blocks in (1, 2, 4):
        inner, outer = sizes.hidden // blocks, 4 * sizes.hidden // blocks
        tensors = {"x": x, "up": sizes.draw(blocks, 2 * outer, inner, scale=inner**-0.5)}
        tensors |= {"down": sizes.draw(blocks, inner, outer, scale=outer**-0.5), "bias": bias}

        def call(tensors, kernels, dropout=0.0):
            torch.manual_seed(0)
            return ops.block_diagonal_glu(*tensors.values(), dropout, kernels)

        yield Case(f"block_diagonal_glu of {blocks}", call, tensors)
    yield Case("block_diagonal_glu with dropout", partial(call, dropout=DROPOUT), tensors, has_twin=False)


def add_layer_norm(sizes: Sizes) -> Iterator[Case]:
    if sizes.length > MOST_TOKENS:
        return
    for hidden in (sizes.hidden, sizes.hidden // 8):
        tensors = {name: sizes.draw(sizes.length, hidden) for name in ("x", "y")}
        tensors |= {"weight": sizes.draw(hidden), "bias": sizes.draw(hidden)}

        def call(tensors, kernels):
            return ops.add_layer_norm(*tensors.values(), 1e-5, kernels)

        yield Case(f"add_layer_norm of {hidden}", call, tensors)


OPS = {make.__name__: make for make in (long_conv, short_conv_gate, block_diagonal_glu, add_layer_norm)}


# --- one case ---


def outcomes(case: Case, kernels: str, dtype: torch.dtype, exactly: bool = False) -> dict[str, Tensor]:
    """Return outputs and gradients of a case by name; exactly: in float64, of the same values."""
    leaves = {name: (value.double() if exactly else value.clone()) for name, value in case.tensors.items()}
    for leaf in leaves.values():
        leaf.requires_grad_(case.has_gradients)
    outputs = case.call(leaves, kernels)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {f"y{i}": y.detach() for i, y in enumerate(outputs)}
    if case.has_gradients:
        generator = torch.Generator(outputs[0].device).manual_seed(1)
        draw = partial(torch.randn, generator=generator, device=outputs[0].device)
        directions = [draw(y.shape).to(dtype).to(y.dtype) for y in outputs]
        gradients = torch.autograd.grad(outputs, [*leaves.values()], directions)
        found |= {f"d_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return found


def errors(values: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Return the error and the worst error of each tensor."""

    def worst(value: Tensor, right: Tensor) -> float:
        largest = (value.double() - right).abs().max() / right.square().mean().sqrt()
        return largest.nan_to_num(torch.inf).item()

    return {name: (relative_error(values[name], right), worst(values[name], right)) for name, right in exact.items()}


def examine(case: Case, dtype: str) -> dict:
    """Return what is seen of a case; `red` says what is wrong, or is None."""
    kind = harness.DTYPES[dtype]
    device = next(iter(case.tensors.values())).device.type
    seconds, values = harness.timed(lambda: outcomes(case, "triton", kind), device, "perf_counter")
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty returns NaN
    try:
        again = outcomes(case, "triton", kind)
    finally:
        torch.use_deterministic_algorithms(False)
    seen = {"first_seconds": seconds, "error": None}
    moving = [name for name, value in values.items() if not torch.equal(value, again[name])]
    wrong = [f"{name} differs between two runs" for name in moving]
    if case.has_twin:
        exact = outcomes(case, "torch", kind, exactly=True)
        ours, twins = errors(values, exact), errors(outcomes(case, "torch", kind), exact)
        for name in exact:
            for place, (what, floor) in enumerate((("error", FLOOR[dtype]), ("worst error", WORST * FLOOR[dtype]))):
                found, bound = ours[name][place], 2 * twins[name][place] + floor
                if not found <= bound:
                    wrong.append(f"{what} of {name} {found:.2e} above {bound:.1e}")
        seen["error"] = max(error for error, _ in ours.values())
        seen["errors"] = {name: {"ours": ours[name], "twin": twins[name]} for name in exact}
    return seen | {"red": "; ".join(wrong) or None}


def measure(options, op: str, dtype: str, length: int) -> list[dict]:
    """Return a record for every case of one operation, dtype and length."""
    sizes = Sizes(length, harness.DTYPES[dtype], options.device, options.channels, options.hidden)
    torch.manual_seed(0)
    records = []
    for case in OPS[op](sizes):
        try:
            seen = examine(case, dtype)
        except Exception as error:
            seen = {"error": None, "first_seconds": None, "red": harness.said(error)}
        records.append(make_record(options, case.name, dtype, length, **seen))
    harness.free_memory(options.device)
    return records


def make_record(options, name: str, dtype: str, length: int | None, **seen) -> dict:
    return harness.make_record(options.device, [], op=name, arm="triton", dtype=dtype, mode="numerics", length=length,
                               batch=None, channels=options.channels, hidden=options.hidden, **seen)  # fmt: skip


# --- processes ---


def processes(options) -> Iterator[Callable[[], list[dict]]]:
    """Run the cases in processes of their own, and yield a function that returns the records of each as it ends."""
    end = time.monotonic() + options.budget_seconds
    with ThreadPoolExecutor(options.jobs) as pool:
        futures: list[Future] = []
        for op in options.ops:
            parts = 4 if op == "long_conv" else 1
            for dtype in options.dtypes:
                for i in range(min(parts, len(options.lengths))):
                    lengths = options.lengths[i::parts]
                    futures.append(pool.submit(run_part, options, op, dtype, lengths, end))
        yield from (future.result for future in as_completed(futures))


def run_part(options, op: str, dtype: str, lengths: list[int], end: float) -> list[dict]:
    """Return the records of one process, and a red one if it did not end by itself before `end`."""
    output = options.output.with_name(f"{options.output.name}.{op}-{dtype}-{lengths[0]}.partial")
    command = [sys.executable, __file__, "--ops", op, "--dtypes", dtype, "--lengths", ",".join(map(str, lengths))]
    command += ["--device", options.device, "--channels", str(options.channels), "--hidden", str(options.hidden)]
    try:
        ended = subprocess.run([*command, "--output", output], capture_output=True, text=True,
                               timeout=max(0.1, end - time.monotonic()))  # fmt: skip
        status, last = ended.returncode, ended.stderr.strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        status, last = "none", f"out of time after {options.budget_seconds:g} s"
    records = json.loads(output.read_text()) if output.is_file() else []
    output.unlink(missing_ok=True)
    done = {record["length"] for record in records}
    if status not in (0, 1) or done != {*lengths} and not any(record["red"] for record in records):
        missing = ",".join(str(length) for length in lengths if length not in done)
        red = one_line(f"the process ended with status {status} before the lengths {missing}: {last}")
        records.append(make_record(options, op, dtype, None, error=None, first_seconds=None, red=red))
    return records


def main():
    parser = harness.make_parser(__doc__.split("\n")[0])
    parser.add_argument("--ops", nargs="+", choices=OPS, default=[*OPS])
    parser.add_argument("--dtypes", nargs="+", choices=harness.DTYPES, help="default: all; on a CPU not bfloat16")
    parser.add_argument("--lengths", type=harness.token_lengths, default=LENGTHS, help="tokens, comma-separated")
    parser.add_argument("--channels", type=int, default=96, help="of the convolutions")
    parser.add_argument("--hidden", type=int, default=768, help="of the operations that mix channels")
    parser.add_argument("--jobs", type=int, default=0, help="processes at a time; 0: all in this one")
    parser.add_argument("--budget-seconds", type=float, default=600, help="of all processes")
    options = harness.parse(parser)
    choose_kernels("triton", torch.empty(0, device=options.device))  # refuses where they cannot run
    # the interpreter multiplies bfloat16 as integers
    options.dtypes = options.dtypes or ["float32", "float16", "bfloat16"][: 2 if options.device == "cpu" else 3]
    grid = [(op, dtype, length) for op in options.ops for dtype in options.dtypes for length in options.lengths]
    jobs = processes(options) if options.jobs else [partial(measure, options, *each) for each in grid]
    harness.run_jobs(jobs, options.output)


if __name__ == "__main__":
    run_command("numerics", main)
