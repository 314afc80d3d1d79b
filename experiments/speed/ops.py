"""Time of single operations: ours against plain composites of PyTorch functions in the layout that suits them best.

    python experiments/speed/ops.py --output ops.json

The composite of the long convolution is a float32 real FFT with cached spectra. Outputs are compared with the composite
in float64 before anything is timed; a wrong operation stops the run with status 1.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from arms import base_model
from gate import relative_error
from harness import (
    DTYPES,
    ROUNDS,
    RedGate,
    add_turns,
    at_least,
    choose_device,
    cuda_peak_bytes,
    interleave,
    make_parser,
    make_record,
    run_jobs,
    timed,
    token_lengths,
    wall_timed,
    warm_up,
)
from original import Filter, block_diagonal
from torch import Tensor, nn
from torch.nn import functional as F

from m2bert.terminal import run_command
from modeling_m2bert import m2bert_ops as ops
from modeling_m2bert.m2bert_ops_filter import FilterCache, generate_taps, implicit_filters

BOUNDS = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1e-2}  # several times the rounding of the composite
KERNELS = {"cpu": {"ours": "auto"}, "cuda": {"ours": "auto", "ours-torch": "torch"}}
BUDGET_SECONDS = 120

Outputs = tuple[Tensor, ...]


class Case(NamedTuple):
    """One operation at one size.

    Attributes:
        ours, plain: the operation on ready inputs; outputs of both have the same shapes.
        exact: the plain one in float64.
        ours_leaves, plain_leaves: what backward differentiates, for each.
    """

    ours: Callable[[], Outputs]
    plain: Callable[[], Outputs]
    exact: Callable[[], Outputs]
    ours_leaves: list[Tensor]
    plain_leaves: list[Tensor]


class Sizes:
    """Batch, length and dtype of a case, and what its inputs are made of.

    Args:
        layer: one layer of the model in float32, on the device.
    """

    def __init__(self, layer: nn.Module, batch: int, length: int, dtype: torch.dtype, training: bool):
        self.layer, self.batch, self.length, self.dtype, self.training = layer, batch, length, dtype, training
        self.device = layer.norm.weight.device
        self.hidden = layer.norm.weight.shape[0]
        self._generator = torch.Generator().manual_seed(0)
        offsets = torch.arange(batch + 1, dtype=torch.int32, device=self.device) * length
        self.rows = offsets, offsets.diff(), length

    def draw(self, *shape: int) -> Tensor:
        """Return a leaf of random values."""
        values = torch.randn(shape, generator=self._generator).to(device=self.device, dtype=self.dtype)
        return values.requires_grad_(self.training)

    def leaf(self, parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return a leaf with the values of a parameter, by default in the case's dtype."""
        return parameter.detach().to(dtype or self.dtype, copy=True).requires_grad_(self.training)

    def channels(self, x: Tensor) -> Tensor:
        """Return a leaf (C, T) with the values of (B, C, L)."""
        return x.detach().transpose(0, 1).flatten(1).contiguous().requires_grad_(self.training)

    def batched(self, x: Tensor) -> Tensor:
        """Return a view (B, C, L) of (C, T)."""
        return x.unflatten(1, (self.batch, self.length)).transpose(0, 1)


def double(values) -> list[Tensor]:
    return [value.detach().double() for value in values]


def same_inputs(inputs: list[Tensor], ours, plain) -> Case:
    """Return a case whose two sides take the same inputs."""
    return Case(lambda: ours(*inputs), lambda: plain(*inputs), lambda: plain(*double(inputs)), inputs, inputs)


# --- the operations, each twice ---


def long_conv(sizes: Sizes) -> Case:
    """Both convolutions with skips and gate. Without gradients both sides keep their spectra, with gradients both make
    them from taps."""
    modules = [sizes.layer.mixer.filter, sizes.layer.mixer.residual_filter]
    signals = [sizes.draw(sizes.batch, sizes.hidden, sizes.length) for _ in range(3)]
    ours_signals = [sizes.channels(x) for x in signals]
    parameters = [module.parameters_for(len(module.time)) for module in modules]
    taps = [generate_taps(each, sizes.length).detach().requires_grad_(sizes.training) for each in parameters]
    skips = [sizes.leaf(module.skip, torch.float32) for module in modules]
    spectra, cache = [spectrum(x.detach()) for x in taps], FilterCache(1)

    def plain():
        return (plain_long_conv(*signals, *(map(spectrum, taps) if sizes.training else spectra), *skips),)

    def exact():
        return (plain_long_conv(*double(signals), *map(spectrum, double(taps)), *double(skips)),)

    def ours():
        if sizes.training:
            return (sizes.batched(ops.long_conv(*ours_signals, *taps, *skips, *sizes.rows)),)
        y = ops.cached_long_conv(*ours_signals, *parameters, *skips, *sizes.rows, [cache.handle, 1])
        return (sizes.batched(y),)

    return Case(ours, plain, exact, [*ours_signals, *taps, *skips], [*signals, *taps, *skips])


def spectrum(taps: Tensor) -> Tensor:
    """Return (H, L + 1) complex, the real DFT of length 2 L of the two-sided filter (2, H, L)."""
    return torch.fft.rfft(torch.cat([taps[0], taps[1].flip(-1)], dim=-1))


def plain_long_conv(gated, gate, residual, kernel, residual_kernel, skip, residual_skip) -> Tensor:
    """Map signals (B, H, L), kernels (H, L + 1) complex and skips (H,) to (B, H, L)."""

    def convolve(x, kernel, skip):
        x, n = x.to(skip.dtype), 2 * x.shape[-1]
        return torch.fft.irfft(torch.fft.rfft(x, n=n) * kernel, n=n)[..., : n // 2] + skip[:, None] * x

    y = convolve(gated, kernel, skip).to(gated.dtype) * gate
    return y + convolve(residual, residual_kernel, residual_skip).to(gated.dtype)


def short_conv_gate(sizes: Sizes) -> Case:
    mixer = sizes.layer.mixer
    projected = sizes.draw(sizes.batch, 3 * sizes.hidden, sizes.length)
    ours_projected = sizes.channels(projected)
    weights = [sizes.leaf(x) for x in (mixer.short_conv.input_bias, mixer.short_conv.weight, mixer.short_conv.bias)]

    def plain(projected, projection_bias, weight, bias):
        x = F.pad(projected + projection_bias[:, None], (2, 0))
        x1, x2, v = F.conv1d(x, weight, bias, groups=len(bias)).chunk(3, dim=1)
        return v * x1, x2

    def ours():
        projection_bias, weight, bias = weights
        outputs = ops.short_conv_gate(ours_projected, projection_bias, weight.squeeze(1), bias, *sizes.rows)
        return tuple(map(sizes.batched, outputs))

    inputs = [projected, *weights]
    return Case(ours, lambda: plain(*inputs), lambda: plain(*double(inputs)), [ours_projected, *weights], inputs)


def block_diagonal_glu(sizes: Sizes) -> Case:
    mlp = sizes.layer.mlp
    inputs = [sizes.draw(sizes.batch * sizes.length, sizes.hidden)]
    inputs += [sizes.leaf(x) for x in (mlp.up.weight, mlp.down.weight, mlp.down.bias)]

    def plain(x, up, down, bias):
        gate, value = block_diagonal(x, up).chunk(2, dim=-1)
        return (block_diagonal(F.gelu(gate) * value, down) + bias,)

    return same_inputs(inputs, lambda *tensors: (ops.block_diagonal_glu(*tensors),), plain)


def add_layer_norm(sizes: Sizes) -> Case:
    norm = sizes.layer.norm
    inputs = [sizes.draw(sizes.batch * sizes.length, sizes.hidden) for _ in range(2)]
    inputs += [sizes.leaf(norm.weight), sizes.leaf(norm.bias)]

    def plain(x, y, weight, bias):
        return (F.layer_norm(x + y, weight.shape, weight, bias, norm.eps),)

    return same_inputs(inputs, lambda *tensors: (ops.add_layer_norm(*tensors, norm.eps),), plain)


def filters(sizes: Sizes) -> Case:
    """Taps of both filters of a layer, whatever the batch; the plain side evaluates one network after another."""
    modules = [sizes.layer.mixer.filter, sizes.layer.mixer.residual_filter]
    plain_modules = [Filter(module).to(sizes.device) for module in modules]
    exact_modules = [Filter(module).to(sizes.device).double() for module in modules]

    def ours():
        if sizes.training:
            return tuple(implicit_filters([module.parameters_for(sizes.length) for module in modules]))
        return tuple(generate_taps(module.parameters_for(len(module.time)), sizes.length) for module in modules)

    def taps(modules):
        return tuple(torch.stack(module(sizes.length)) for module in modules)

    def leaves(modules):
        return [parameter for module in modules for name, parameter in module.named_parameters() if name != "skip"]

    return Case(ours, lambda: taps(plain_modules), lambda: taps(exact_modules), leaves(modules), leaves(plain_modules))


CASES = {case.__name__: case for case in (long_conv, short_conv_gate, block_diagonal_glu, add_layer_norm, filters)}


# --- the benchmark ---


def parse():
    parser = make_parser(__doc__.split("\n")[0])
    parser.add_argument("--ops", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--lengths", type=token_lengths, default="2048,8192,32768", help="tokens per row")
    parser.add_argument("--batch-tokens", type=at_least(1), default=32768, help="per batch: as many rows as fit")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    add_turns(parser)
    options = parser.parse_args()
    if options.batch_tokens < options.lengths[-1]:
        parser.error(f"--batch-tokens={options.batch_tokens} is below the longest of --lengths; raise it")
    options.device = choose_device(options)
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    return options


def measure(options, layer: nn.Module, op: str, length: int) -> list[dict]:
    """Return records of all arms of one operation at one length."""
    device, batch, training = options.device, options.batch_tokens // length, options.mode == "training"
    case = CASES[op](Sizes(layer, batch, length, DTYPES[options.dtype], training))
    runs = {arm: run_of(case, arm, device, training) for arm in (*KERNELS[device], "plain")}
    firsts, errors = check(op, length, case, runs, options)
    for run in runs.values():
        warm_up(run, device)
    peaks = {arm: cuda_peak_bytes(run) if device == "cuda" else None for arm, run in runs.items()}
    turns = {arm: lambda run=run: timed(run, device)[0] for arm, run in runs.items()}
    seconds = interleave(turns, options.rounds or ROUNDS[device], BUDGET_SECONDS, f"{op} {length}")
    shape = {"dtype": options.dtype, "length": length, "batch": batch, "tokens": batch * length, "mode": options.mode}
    return [
        make_record(device, values, op=op, arm=arm, **shape, first_seconds=firsts[arm], error=errors[arm],
                    peak_bytes=peaks[arm], cache_bytes=None)
        for arm, values in seconds.items()
    ]  # fmt: skip


def run_of(case: Case, arm: str, device: str, training: bool) -> Callable[[], Outputs]:
    """Return a call of the arm's operation, with its backward in training."""
    compute, leaves = (case.plain, case.plain_leaves) if arm == "plain" else (case.ours, case.ours_leaves)

    def run():
        os.environ["M2BERT_KERNELS"] = KERNELS[device].get(arm, "auto")
        with torch.set_grad_enabled(training):
            outputs = compute()
            if training:
                torch.autograd.grad(outputs, leaves, outputs)
        return outputs

    return run


def check(op: str, length: int, case: Case, runs: dict, options) -> tuple[dict, dict]:
    """Return wall seconds of every arm's first call, and its error; raise RedGate if it is too large."""
    with torch.no_grad():
        exact = case.exact()
    firsts, errors = {}, {}
    for arm, run in runs.items():
        firsts[arm], outputs = wall_timed(run, options.device)
        errors[arm] = max(relative_error(found.detach(), right) for found, right in zip(outputs, exact, strict=True))
        if not errors[arm] <= BOUNDS[options.dtype]:
            raise RedGate(f"{op} at {length} tokens: error {errors[arm]:.2e} of {arm} is above {BOUNDS[options.dtype]}")
    return firsts, errors


def main():
    options = parse()
    layer = base_model(options.lengths[-1], 1).layers[0].to(options.device)
    jobs = [
        lambda op=op, length=length: measure(options, layer, op, length)
        for op in options.ops
        for length in options.lengths
    ]
    run_jobs(jobs, options.output)


if __name__ == "__main__":
    run_command("ops", main)
