"""Every operation twice: ours, and a plain composite of PyTorch functions in the layout that suits it best."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from original import Filter, block_diagonal
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_m2bert import m2bert_ops as ops
from modeling_m2bert.m2bert_ops_filter import FilterCache, generate_taps, implicit_filters

Outputs = tuple[Tensor, ...]


@dataclass
class Case:
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
    """Batch, length and dtype of a case, and what to make its inputs of.

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
        values = torch.randn(shape, generator=self._generator).to(device=self.device, dtype=self.dtype)
        return values.requires_grad_(self.training)

    def weight(self, parameter: Tensor) -> Tensor:
        """A leaf with the values of a parameter, in the case's dtype."""
        return parameter.detach().to(self.dtype, copy=True).requires_grad_(self.training)

    def skip(self, parameter: Tensor) -> Tensor:
        """A leaf with the values of a parameter, in float32."""
        return parameter.detach().clone().requires_grad_(self.training)

    def channels(self, x: Tensor) -> Tensor:
        """(B, C, L) -> a leaf (C, T)."""
        return x.detach().transpose(0, 1).flatten(1).contiguous().requires_grad_(self.training)

    def batched(self, x: Tensor) -> Tensor:
        """(C, T) -> a view (B, C, L)."""
        return x.unflatten(1, (self.batch, self.length)).transpose(0, 1)


def double(values) -> list[Tensor]:
    return [value.detach().double() for value in values]


def long_conv(sizes: Sizes) -> Case:
    """Both convolutions with skips and gate. Without gradients both sides keep their spectra, with gradients both make
    them from taps."""
    modules = [sizes.layer.mixer.filter, sizes.layer.mixer.residual_filter]
    signals = [sizes.draw(sizes.batch, sizes.hidden, sizes.length) for _ in range(3)]
    ours_signals = [sizes.channels(x) for x in signals]
    parameters = [module.parameters_for(len(module.time)) for module in modules]
    taps = [generate_taps(each, sizes.length).detach().requires_grad_(sizes.training) for each in parameters]
    skips = [sizes.skip(module.skip) for module in modules]

    def plain():
        return (plain_long_conv(*signals, *(map(spectrum, taps) if sizes.training else spectra), *skips),)

    def exact():
        return (plain_long_conv(*double(signals), *map(spectrum, double(taps)), *double(skips)),)

    if sizes.training:

        def ours():
            return (sizes.batched(ops.long_conv(*ours_signals, *taps, *skips, *sizes.rows)),)
    else:
        spectra = [spectrum(x) for x in taps]
        cache = FilterCache(1)

        def ours():
            y = ops.cached_long_conv(*ours_signals, *parameters, *skips, *sizes.rows, [cache.handle, 1])
            return (sizes.batched(y),)

    return Case(ours, plain, exact, [*ours_signals, *taps, *skips], [*signals, *taps, *skips])


def spectrum(taps: Tensor) -> Tensor:
    """(2, H, L) -> (H, L + 1) complex, the real DFT of length 2 L of the two-sided filter."""
    return torch.fft.rfft(torch.cat([taps[0], taps[1].flip(-1)], dim=-1))


def plain_long_conv(gated, gate, residual, kernel, residual_kernel, skip, residual_skip) -> Tensor:
    """Signals (B, H, L), kernels (H, L + 1) complex, skips (H,) -> (B, H, L)."""

    def convolve(x, kernel, skip):
        x, n = x.to(skip.dtype), 2 * x.shape[-1]
        return torch.fft.irfft(torch.fft.rfft(x, n=n) * kernel, n=n)[..., : n // 2] + skip[:, None] * x

    y = convolve(gated, kernel, skip).to(gated.dtype) * gate
    return y + convolve(residual, residual_kernel, residual_skip).to(gated.dtype)


def short_conv_gate(sizes: Sizes) -> Case:
    mixer = sizes.layer.mixer
    projected = sizes.draw(sizes.batch, 3 * sizes.hidden, sizes.length)
    ours_projected = sizes.channels(projected)
    weights = [sizes.weight(x) for x in (mixer.short_conv.input_bias, mixer.short_conv.weight, mixer.short_conv.bias)]

    def compute(projected, projection_bias, weight, bias):
        x = F.pad(projected + projection_bias[:, None], (2, 0))
        x1, x2, v = F.conv1d(x, weight, bias, groups=len(bias)).chunk(3, dim=1)
        return v * x1, x2

    def ours():
        projection_bias, weight, bias = weights
        outputs = ops.short_conv_gate(ours_projected, projection_bias, weight.squeeze(1), bias, *sizes.rows)
        return tuple(map(sizes.batched, outputs))

    return Case(
        ours,
        plain=lambda: compute(projected, *weights),
        exact=lambda: compute(*double([projected, *weights])),
        ours_leaves=[ours_projected, *weights],
        plain_leaves=[projected, *weights],
    )


def block_diagonal_glu(sizes: Sizes) -> Case:
    mlp = sizes.layer.mlp
    inputs = [sizes.draw(sizes.batch * sizes.length, sizes.hidden)]
    inputs += [sizes.weight(x) for x in (mlp.up.weight, mlp.down.weight, mlp.down.bias)]

    def compute(x, up, down, bias):
        gate, value = block_diagonal(x, up).chunk(2, dim=-1)
        return (block_diagonal(F.gelu(gate) * value, down) + bias,)

    return _same_inputs(inputs, lambda *tensors: (ops.block_diagonal_glu(*tensors),), compute)


def add_layer_norm(sizes: Sizes) -> Case:
    norm = sizes.layer.norm
    inputs = [sizes.draw(sizes.batch * sizes.length, sizes.hidden) for _ in range(2)]
    inputs += [sizes.weight(norm.weight), sizes.weight(norm.bias)]

    def compute(x, y, weight, bias):
        return (F.layer_norm(x + y, weight.shape, weight, bias, norm.eps),)

    return _same_inputs(inputs, lambda *tensors: (ops.add_layer_norm(*tensors, norm.eps),), compute)


def filters(sizes: Sizes) -> Case:
    """Taps of both filters of a layer, whatever the batch; the plain side evaluates one network after another."""
    modules = [sizes.layer.mixer.filter, sizes.layer.mixer.residual_filter]
    plain_modules = [Filter(module).to(sizes.device) for module in modules]
    exact_modules = [Filter(module).to(sizes.device).double() for module in modules]

    def ours():
        if sizes.training:
            return tuple(implicit_filters([module.parameters_for(sizes.length) for module in modules]))
        return tuple(generate_taps(module.parameters_for(len(module.time)), sizes.length) for module in modules)

    def compute(modules):
        return tuple(torch.stack(module(sizes.length)) for module in modules)

    def leaves(modules):
        return [parameter for module in modules for name, parameter in module.named_parameters() if name != "skip"]

    return Case(
        ours, lambda: compute(plain_modules), lambda: compute(exact_modules), leaves(modules), leaves(plain_modules)
    )


def _same_inputs(inputs: list[Tensor], ours, plain) -> Case:
    return Case(lambda: ours(*inputs), lambda: plain(*inputs), lambda: plain(*double(inputs)), inputs, inputs)


CASES = {case.__name__: case for case in (long_conv, short_conv_gate, block_diagonal_glu, add_layer_norm, filters)}
