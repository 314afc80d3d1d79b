"""The long convolution on a GPU: chooses among its three forms, which are equal up to rounding.

    Toeplitz       longest <= 256               one product with the Toeplitz matrix of the taps per channel
    fused          longest <= 8192, 16 bits     a whole transform inside one program
    three kernels  any length                   transforms through a scratch, groups of channels at a time

The algorithm is told in m2bert_ops_triton_dft. Activations are channel-major (C, T): the rows of a batch lie side by
side, row b in columns offsets[b] .. offsets[b + 1], its first lengths[b] columns real, the rest padding that is never
read and is written as zeros. All functions here are plain computations; autograd is the caller's.
"""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("m2bert's GPU kernels need triton; pip install triton") from error

import torch
from torch import Tensor

from .m2bert_ops_triton_conv_backward import long_conv_backward
from .m2bert_ops_triton_dft import FUSED_LONGEST, TOEPLITZ_LONGEST, spectrum, transform_length
from .m2bert_ops_triton_fused import long_conv_fused
from .m2bert_ops_triton_stages import Stages, row_columns, sum_rows, tile_places
from .m2bert_ops_triton_toeplitz import long_conv_toeplitz, two_sided_taps

__all__ = ["long_conv", "long_conv_backward", "prepare_filter", "transform_length"]


@triton.jit(
    do_not_specialize=[
        "y_stride", "x_stride", "gate_stride", "residual_stride", "first_channel", "rows", "batch", "longest"
    ]
)  # fmt: skip
def gate_rows(
    y, z, table, x, gate, residual, skip, residual_skip, scale, residual_scale, offsets, lengths, y_stride, x_stride,
    gate_stride, residual_stride, first_channel, rows, batch, longest, M1, UNIFORM: tl.constexpr, M2: tl.constexpr,
    TN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute the inverse of stage 1, skips, gate and the sum of both convolutions. Grid (rows, M1 / TN)."""
    row, tile = tl.program_id(0), tl.program_id(1)
    channel = (first_channel + row // batch).to(tl.int64)
    start, length, width = row_columns(offsets, lengths, row % batch, longest, UNIFORM)
    y += channel * y_stride + start
    z += row.to(tl.int64) * (2 * M1 * M2)
    if tile * TN * M2 < length:
        total = tl.zeros([TN, M2], tl.float32)
        if residual is not None:
            second = z + rows.to(tl.int64) * (2 * M1 * M2)
            total = sum_rows(second, table, tile, M1, M2, TN, BK) * tl.load(residual_scale + channel)
            tl.debug_barrier()  # such barriers keep the compiler from loading early, and spilling
            n = tile_places(lengths, length, row % batch, tile, M2, TN)
            value = tl.load(residual + channel * residual_stride + start + n, mask=n < length, other=0.0)
            total += tl.load(residual_skip + channel) * value.to(tl.float32)
            tl.debug_barrier()
        part = sum_rows(z, table, tile, M1, M2, TN, BK) * tl.load(scale + channel)
        tl.debug_barrier()
        n = tile_places(lengths, length, row % batch, tile, M2, TN)
        value = tl.load(x + channel * x_stride + start + n, mask=n < length, other=0.0)
        part += tl.load(skip + channel) * value.to(tl.float32)
        factor = tl.load(gate + channel * gate_stride + start + n, mask=n < length, other=0.0)
        total += part * factor.to(tl.float32)
        tl.store(y + n, tl.where(n < length, total, 0.0).to(y.dtype.element_ty), mask=n < width)
    elif tile * TN * M2 < width:
        n = tile_places(lengths, length, row % batch, tile, M2, TN)
        tl.store(y + n, tl.zeros([TN, M2], y.dtype.element_ty), mask=n < width)


def long_conv_three_kernels(
    gated, gate, residual, prepared, residual_prepared, skip, residual_skip, offsets, lengths, longest, m
) -> Tensor:
    """Compute long_conv with spectra (planes, scale) for transforms of length m >= 512."""
    channels, batch = gated.shape[0], lengths.numel()
    stages = Stages(m, gated.dtype, gated.device)
    signals = [gated] if residual is None else [gated, residual]
    residual_planes, residual_scale = residual_prepared or (None, None)
    spectra = [prepared[0]] if residual is None else [prepared[0], residual_planes]
    group = stages.channels_at_once(channels, batch, len(signals), max(1, stages.rows // batch))
    z = stages.scratch(len(signals), group * batch, gated.device)
    y = torch.empty(gated.shape, dtype=gated.dtype, device=gated.device)
    for first in range(0, channels, group):
        rows = min(group, channels - first) * batch
        stages.transform(z, signals, first, rows, offsets, lengths, longest)
        stages.multiply(z, spectra, first, rows, batch, (0, len(signals)))
        gate_rows[(rows, triton.cdiv(stages.m1, stages.tile))](
            y, z, stages.inverse, gated, gate, residual, skip, residual_skip, prepared[1], residual_scale, offsets,
            lengths, y.stride(0), gated.stride(0), gate.stride(0), 0 if residual is None else residual.stride(0),
            first, rows, batch, longest, stages.m1, UNIFORM=gated.shape[1] == batch * longest, M2=stages.m2,
            TN=stages.tile, BK=stages.block, **stages.options,
        )  # fmt: skip
    return y


def prepare_filter(taps: Tensor, m: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Prepare a filter for rows of up to m tokens. The result is worth keeping while the filter does not change.

    Args:
        taps: (2, H, P) float32, forward and reverse; zero beyond P, and a longer filter's first M serve.
        m: from transform_length.
        dtype: of the activations.

    Returns:
        Two tensors: two-sided taps (H, 2 M) for m <= 256, else the spectrum (H, 2, M1, M2); and their scale (H,).
    """
    return two_sided_taps(taps, m, dtype) if m <= TOEPLITZ_LONGEST else spectrum(taps, m, dtype)


def long_conv(gated, gate, residual, filters, skip, residual_skip, offsets, lengths, longest) -> Tensor:
    """Compute y = gate (f * gated + skip gated) + rf * residual + residual_skip residual.

    Args:
        gated, gate, residual: (H, T), one floating type (not float64), stride(1) == 1; residual may be None.
        filters: function of M = transform_length(longest), called once, that returns prepare_filter of the filter f
            and of the residual one rf (None without residual).
        skip, residual_skip: (H,) float32; the latter may be None.
        offsets: (B + 1,) int32 on the device, first column of every row, and T.
        lengths: (B,) int32 on the device, number of real tokens of every row.
        longest: at least every length and every slot.

    Returns:
        (H, T) in the type of gated; zeros in padding.
    """
    if not gated.numel():
        return torch.empty(gated.shape, dtype=gated.dtype, device=gated.device)
    m = transform_length(longest)
    if m <= TOEPLITZ_LONGEST:
        form = long_conv_toeplitz
    elif m <= FUSED_LONGEST and gated.dtype != torch.float32:
        form = long_conv_fused
    else:
        form = long_conv_three_kernels
    return form(gated, gate, residual, *filters(m), skip, residual_skip, offsets, lengths, longest, m)
