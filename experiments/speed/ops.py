"""Time of single operations: ours against plain composites of PyTorch functions in the layout that suits them best.

    python experiments/speed/ops.py --output ops.json

The composite of the long convolution is a float32 real FFT with cached spectra. Outputs are compared with the composite
in float64 before anything is timed. An arm that is wrong is recorded as red and not timed, and the run ends with status
1.
"""

import os
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import harness
import torch
from arms import base_model, relative_error
from original import block_diagonal, spectrum, taps
from original import long_conv as convolve
from torch import Tensor, nn
from torch.nn import functional as F

from m2bert.terminal import run_command
from modeling_m2bert import m2bert_ops as ops
from modeling_m2bert.m2bert_ops_filter import FilterCache, generate_taps, implicit_filters

BOUNDS = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1e-2}  # several times the rounding of the composite
KERNELS = {"cpu": {"ours": "auto"}, "cuda": {"ours": "auto", "ours-torch": "torch"}}
BUDGET_SECONDS = {"cpu": 120, "cuda": 2}  # of each operation at each length

Outputs = tuple[Tensor, ...]


class Case(NamedTuple):
    """One operation at one size: ours, the plain one, and the plain one in float64, all on ready inputs and with
    outputs of the same shapes; what backward differentiates, for ours and for the plain one."""

    ours: Callable[[], Outputs]
    plain: Callable[[], Outputs]
    exact: Callable[[], Outputs]
    ours_leaves: list[Tensor]
    plain_leaves: list[Tensor]


class Sizes:
    """Batch, length and dtype of a case, and what its inputs are made of: `layer` is one of the model in float32."""

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
    """Both convolutions with skips and gate. Both sides keep their spectra, or with gradients make them from taps."""
    modules = [sizes.layer.mixer.filter, sizes.layer.mixer.residual_filter]
    signals = [sizes.draw(sizes.batch, sizes.hidden, sizes.length) for _ in range(3)]
    ours_signals = [sizes.channels(x) for x in signals]
    parameters = [module.parameters_for(len(module.time)) for module in modules]
    filters = [generate_taps(each, sizes.length).detach().requires_grad_(sizes.training) for each in parameters]
    skips = [sizes.leaf(module.skip, torch.float32) for module in modules]
    spectra, cache = [spectrum(*each.detach()) for each in filters], FilterCache(1)

    def composite(gated, gate, residual, kernel, residual_kernel, skip, residual_skip):
        return (convolve(gated, kernel, skip) * gate + convolve(residual, residual_kernel, residual_skip),)

    def plain():
        return composite(*signals, *([spectrum(*each) for each in filters] if sizes.training else spectra), *skips)

    def exact():
        return composite(*double(signals), *(spectrum(*each) for each in double(filters)), *double(skips))

    def ours():
        if sizes.training:
            return (sizes.batched(ops.long_conv(*ours_signals, *filters, *skips, *sizes.rows)),)
        y = ops.cached_long_conv(*ours_signals, *parameters, *skips, *sizes.rows, [cache.handle, 1])
        return (sizes.batched(y),)

    return Case(ours, plain, exact, [*ours_signals, *filters, *skips], [*signals, *filters, *skips])


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
    plain_modules, exact_modules = deepcopy(modules), [deepcopy(module).double() for module in modules]

    def ours():
        if sizes.training:
            return tuple(implicit_filters([module.parameters_for(sizes.length) for module in modules]))
        return tuple(generate_taps(module.parameters_for(len(module.time)), sizes.length) for module in modules)

    def composite(modules):
        return tuple(torch.stack(taps(module, slice(sizes.length))) for module in modules)

    def leaves(modules):
        return [parameter for module in modules for name, parameter in module.named_parameters() if name != "skip"]

    sides = leaves(modules), leaves(plain_modules)
    return Case(ours, lambda: composite(plain_modules), lambda: composite(exact_modules), *sides)


CASES = {case.__name__: case for case in (long_conv, short_conv_gate, block_diagonal_glu, add_layer_norm, filters)}


# --- the benchmark ---


def measure(options, layer: nn.Module, op: str, length: int) -> list[dict]:
    """Return records of all arms of one operation at one length."""
    device, batch, training = options.device, options.batch_tokens // length, options.mode == "training"
    case = CASES[op](Sizes(layer, batch, length, harness.DTYPES[options.dtype], training))
    with torch.no_grad():
        exact = case.exact()
    runs = {arm: partial(call, case, arm, device, training) for arm in (*KERNELS[device], "plain")}
    firsts, errors, peaks, red = {}, {}, {}, {}
    for arm, run in runs.items():
        try:
            firsts[arm], outputs = harness.timed(run, device, "perf_counter")
            errors[arm] = max(
                relative_error(found.detach(), right) for found, right in zip(outputs, exact, strict=True)
            )
            if not errors[arm] <= BOUNDS[options.dtype]:
                raise ArithmeticError(f"error {errors[arm]:.2e} is above {BOUNDS[options.dtype]:.0e}")
            harness.warm_up(run, device)
            peaks[arm] = harness.cuda_peak_bytes(run) if device == "cuda" else None
        except Exception as error:
            red[arm] = harness.said(error)
    turns = {arm: lambda run=run: harness.timed(run, device)[0] for arm, run in runs.items() if arm not in red}
    rounds = options.rounds or harness.ROUNDS[device]
    seconds, failed = harness.interleave(turns, rounds, BUDGET_SECONDS[device], f"{op} {length}")
    red |= failed
    return [
        harness.make_record(device, seconds.get(arm, []), op=op, arm=arm, dtype=options.dtype, length=length,
                    batch=batch, tokens=batch * length, mode=options.mode, first_seconds=firsts.get(arm),
                    error=errors.get(arm), peak_bytes=peaks.get(arm), cache_bytes=None, red=red.get(arm))
        for arm in runs
    ]  # fmt: skip


def call(case: Case, arm: str, device: str, training: bool) -> Outputs:
    """Run the arm's operation, with its backward in training."""
    compute, leaves = (case.plain, case.plain_leaves) if arm == "plain" else (case.ours, case.ours_leaves)
    os.environ["M2BERT_KERNELS"] = KERNELS[device].get(arm, "auto")
    with torch.set_grad_enabled(training):
        outputs = compute()
        if training:
            torch.autograd.grad(outputs, leaves, outputs)
    return outputs


def main():
    parser = harness.make_parser(__doc__.split("\n")[0])
    parser.add_argument("--ops", nargs="+", choices=CASES, default=[*CASES])
    harness.add_turns(parser, lengths="2048,8192,32768", batch_tokens=32768, dtype=None)
    options = harness.parse(parser)
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    layer = base_model(options.lengths[-1], 1).layers[0].to(options.device)
    jobs = [partial(measure, options, layer, op, length) for op in options.ops for length in options.lengths]
    harness.run_jobs(jobs, options.output)


if __name__ == "__main__":
    run_command("ops", main)
