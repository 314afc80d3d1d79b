"""The long convolution on a GPU. It has three forms, which are equal up to rounding; `long_conv` chooses one.

    Toeplitz       longest <= 256               y[t, b] = sum_j lag(t - j) x[j, b], lag(n) = h[n] or r[-n-1]
    fused          longest <= 8192, 16 bits     a whole transform inside one program
    three kernels  any length                   transforms through a scratch, groups of channels at a time

m2bert_ops_triton_dft explains the transforms, and m2bert_ops the rows. The Toeplitz form multiplies, for each channel,
the Toeplitz matrix lag(t - j) by the matrix x[j, b], whose columns are the rows of the batch. The Toeplitz matrix never
exists in memory: its tiles are read from the channel's 2 M lags.
"""

import torch
from torch import Tensor

from .m2bert_ops_triton import tl, triton
from .m2bert_ops_triton_conv_backward import long_conv_backward
from .m2bert_ops_triton_dft import (
    FUSED_LONGEST,
    TOEPLITZ_LONGEST,
    operand_dtype,
    power_of_two_scale,
    spectrum,
    transform_length,
)
from .m2bert_ops_triton_fused import long_conv_fused
from .m2bert_ops_triton_stages import Stages, row_columns, row_scales, sample_scale, sum_rows, tile_places

__all__ = ["long_conv", "long_conv_backward", "prepare_filter", "transform_length"]


@triton.jit(
    do_not_specialize=[
        "y_stride", "x_stride", "gate_stride", "residual_stride", "first_channel", "rows", "batch", "longest"
    ]
)  # fmt: skip
def gate_rows(
    y, z, table, x, gate, residual, skip, residual_skip, scale, residual_scale, scales, offsets, lengths, y_stride,
    x_stride, gate_stride, residual_stride, first_channel, rows, batch, longest, M1, UNIFORM: tl.constexpr,
    M2: tl.constexpr, TN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute the inverse of stage 1, the skip terms, the gate and the sum of both convolutions.

    `scales` (channels, batch, 2) are those of the rows of x and residual; None without. Grid (rows, M1 / TN).
    """
    row, tile = tl.program_id(0), tl.program_id(1)
    channel = (first_channel + row // batch).to(tl.int64)
    start, length, width = row_columns(offsets, lengths, row % batch, longest, UNIFORM)
    y += channel * y_stride + start
    z += row.to(tl.int64) * (2 * M1 * M2)
    if tile * TN * M2 < length:
        total = tl.zeros([TN, M2], tl.float32)
        if residual is not None:
            second = z + rows.to(tl.int64) * (2 * M1 * M2)
            undo = tl.load(residual_scale + channel)
            if scales is not None:
                undo /= tl.load(scales + 2 * (first_channel * batch + row) + 1)
            total = sum_rows(second, table, tile, M1, M2, TN, BK) * undo
            tl.debug_barrier()  # barriers here keep the compiler from loading early, which would spill registers
            n = tile_places(lengths, length, row % batch, tile, M2, TN)
            value = tl.load(residual + channel * residual_stride + start + n, mask=n < length, other=0.0)
            total += tl.load(residual_skip + channel) * value.to(tl.float32)
            tl.debug_barrier()
        undo = tl.load(scale + channel)
        if scales is not None:
            undo /= tl.load(scales + 2 * (first_channel * batch + row))
        part = sum_rows(z, table, tile, M1, M2, TN, BK) * undo
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
    """Compute long_conv with spectra, (planes, scale), for transforms of length m >= 512."""
    channels, batch = gated.shape[0], lengths.numel()
    stages = Stages(m, gated.dtype, gated.device)
    signals = [gated] if residual is None else [gated, residual]
    residual_planes, residual_scale = residual_prepared or (None, None)
    spectra = [prepared[0]] if residual is None else [prepared[0], residual_planes]
    half = stages.dtype == torch.float16
    scales = row_scales(signals[0], signals[-1], None, offsets, lengths, longest) if half else None
    group = stages.channels_at_once(channels, batch, len(signals), max(1, stages.rows // batch))
    z = stages.scratch(len(signals), group * batch, gated.device)
    y = torch.empty(gated.shape, dtype=gated.dtype, device=gated.device)
    for first in range(0, channels, group):
        rows = min(group, channels - first) * batch
        stages.transform(z, signals, first, rows, offsets, lengths, longest, scales=scales)
        stages.multiply(z, spectra, first, rows, batch, (0, len(signals)))
        gate_rows[(rows, triton.cdiv(stages.m1, stages.tile))](
            y, z, stages.inverse, gated, gate, residual, skip, residual_skip, prepared[1], residual_scale, scales,
            offsets, lengths, y.stride(0), gated.stride(0), gate.stride(0),
            0 if residual is None else residual.stride(0), first, rows, batch, longest, stages.m1,
            UNIFORM=gated.shape[1] == batch * longest, M2=stages.m2, TN=stages.tile, BK=stages.block, **stages.options,
        )  # fmt: skip
    return y


def two_sided_taps(taps: Tensor, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the taps of both directions in the order of their lags.

    Args:
        taps: (2, H, P) float32, forward and reverse. Taps beyond P count as zero, taps beyond M are not used.
        m: M, a transform_length of at least the longest row: a power of two, at least 16.
        dtype: of the activations.

    Returns:
        lags: (H, 2 M) in the operands' dtype. Index M + n holds the tap of lag n, divided by scale.
        scale: (H,), powers of two.
    """
    channels, length = taps.shape[1:]
    lags = taps.new_zeros(channels, 2 * m)
    forward, reverse = min(length, m), min(length, m - 1)
    lags[:, m : m + forward] = taps[0, :, :forward]
    lags[:, m - reverse : m] = taps[1, :, :reverse].flip(-1)
    scale = power_of_two_scale(lags.abs().amax(1))
    return (lags / scale[:, None]).to(operand_dtype(dtype)), scale


@triton.jit
def _multiply(
    x, lags, columns, lengths, t, longest, M: tl.constexpr, TT: tl.constexpr, TB: tl.constexpr, TJ: tl.constexpr
):  # fmt: skip
    """Return the samples t (TT, 1) of a convolution, (TT, TB), for the TB rows that begin at `columns` (1, TB) of x."""
    n = tl.arange(0, M)[:, None]
    size = tl.abs(tl.load(x + columns + n, mask=n < lengths, other=0.0).to(tl.float32))
    scale = sample_scale(tl.max(size, 0, keep_dims=True))
    total = tl.zeros([TT, TB], tl.float32)
    for first in range(0, longest, TJ):
        j = first + tl.arange(0, TJ)
        matrix = tl.load(lags + M + t - j[None, :])
        samples = tl.load(x + columns + j[:, None], mask=j[:, None] < lengths, other=0.0)
        samples = (samples.to(tl.float32) * scale).to(matrix.dtype)
        total = tl.dot(matrix, samples, total, input_precision="ieee")
    return total / scale


@triton.jit(do_not_specialize=["y_stride", "x_stride", "gate_stride", "residual_stride", "batch", "longest"])
def multiply_toeplitz(
    y, x, gate, residual, lags, residual_lags, scale, residual_scale, skip, residual_skip, offsets, lengths, y_stride,
    x_stride, gate_stride, residual_stride, batch, longest, M: tl.constexpr, TT: tl.constexpr, TB: tl.constexpr,
    TJ: tl.constexpr,
):  # fmt: skip
    """Compute both convolutions, skip terms and gate for TB rows of one channel.

    Grid (channels, M / TT, batch / TB).
    """
    channel = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * TT + tl.arange(0, TT)[:, None]
    b = tl.program_id(2) * TB + tl.arange(0, TB)[None, :]
    columns = tl.load(offsets + b, mask=b < batch, other=0)
    width = tl.load(offsets + b + 1, mask=b < batch, other=0) - columns
    length = tl.load(lengths + b, mask=b < batch, other=0)
    real = t < length
    x += channel * x_stride
    total = _multiply(x, lags + channel * (2 * M), columns, length, t, longest, M, TT, TB, TJ)
    total *= tl.load(scale + channel)
    total += tl.load(skip + channel) * tl.load(x + columns + t, mask=real, other=0.0).to(tl.float32)
    total *= tl.load(gate + channel * gate_stride + columns + t, mask=real, other=0.0).to(tl.float32)
    if residual is not None:
        residual += channel * residual_stride
        second = _multiply(residual, residual_lags + channel * (2 * M), columns, length, t, longest, M, TT, TB, TJ)
        total += second * tl.load(residual_scale + channel)
        total += tl.load(residual_skip + channel) * tl.load(residual + columns + t, mask=real, other=0.0).to(tl.float32)
    target = y + channel * y_stride + columns + t
    tl.store(target, tl.where(real, total, 0.0).to(y.dtype.element_ty), mask=t < width)


def long_conv_toeplitz(
    gated, gate, residual, prepared, residual_prepared, skip, residual_skip, offsets, lengths, longest, m
) -> Tensor:
    """Compute long_conv of rows no longer than m <= 256 with two-sided taps, (lags, scale)."""
    batch = lengths.numel()
    tile = min(64 if prepared[0].dtype == torch.float16 else 32, m)
    columns = 16 if batch <= 16 else 32
    residual_lags, residual_scale = residual_prepared or (None, None)
    y = torch.empty(gated.shape, dtype=gated.dtype, device=gated.device)
    multiply_toeplitz[(gated.shape[0], triton.cdiv(longest, tile), triton.cdiv(batch, columns))](
        y, gated, gate, residual, prepared[0], residual_lags, prepared[1], residual_scale, skip, residual_skip,
        offsets, lengths, y.stride(0), gated.stride(0), gate.stride(0), 0 if residual is None else residual.stride(0),
        batch, longest, M=m, TT=tile, TB=columns, TJ=tile, num_warps=columns // 4, num_stages=2,
    )  # fmt: skip
    return y


def prepare_filter(taps: Tensor, m: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Prepare a filter for rows of up to m tokens.

    Args:
        taps: (2, H, P) float32, forward and reverse. Taps beyond P count as zero, taps beyond M are not used.
        m: M, a transform_length.
        dtype: of the activations.

    Returns:
        For m <= 256 two-sided taps (H, 2 M), else the spectrum (H, 2, M1, M2); and their scale (H,).
    """
    return two_sided_taps(taps, m, dtype) if m <= TOEPLITZ_LONGEST else spectrum(taps, m, dtype)


def long_conv(gated, gate, residual, filters, skip, residual_skip, offsets, lengths, longest) -> Tensor:
    """Compute m2bert_ops.long_conv.

    Args:
        gated, gate, residual: not float64, with stride(1) == 1.
        filters: function that returns the prepared filter, and the prepared residual filter or None. It is called once,
            with transform_length(longest).
        skip, residual_skip: float32.
        offsets, lengths, longest: rows, as m2bert_ops describes them.
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
