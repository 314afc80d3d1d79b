"""The long convolution of very short rows: one product with the Toeplitz matrix of the taps per channel.

    y[t, b] = sum_j lag(t - j) x[j, b]        lag(n) = h[n] for n >= 0, r[-n-1] for n < 0

The matrix never exists in memory: its tiles are read from the 2 M lags of a channel, the batch is its columns.
"""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("m2bert's GPU kernels need triton; pip install triton") from error

import torch
from torch import Tensor

from .m2bert_ops_triton_dft import operand_dtype, power_of_two_scale


def two_sided_taps(taps: Tensor, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return all lags of a filter in one line.

    Args:
        taps: (2, H, P) float32, forward and reverse; zero beyond P, cut beyond M.
        m: longest row; a power of two from 16 on.
        dtype: of the activations.

    Returns:
        lags (H, 2 M) in the operands' type, lag n divided by scale at M + n; scale (H,), a power of two.
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
    """Return rows t of the product (TT, TB) for the batch rows that begin at `columns` (1, TB) of x."""
    total = tl.zeros([TT, TB], tl.float32)
    for first in range(0, longest, TJ):
        j = first + tl.arange(0, TJ)
        matrix = tl.load(lags + M + t - j[None, :])
        samples = tl.load(x + columns + j[:, None], mask=j[:, None] < lengths, other=0.0)
        total = tl.dot(matrix, samples.to(matrix.dtype), total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["y_stride", "x_stride", "gate_stride", "residual_stride", "batch", "longest"])
def multiply_toeplitz(
    y, x, gate, residual, lags, residual_lags, scale, residual_scale, skip, residual_skip, offsets, lengths, y_stride,
    x_stride, gate_stride, residual_stride, batch, longest, M: tl.constexpr, TT: tl.constexpr, TB: tl.constexpr,
    TJ: tl.constexpr,
):  # fmt: skip
    """Compute both convolutions, skips and gate of TB rows of one channel. Grid (channels, M / TT, batch / TB)."""
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
    """Compute long_conv of rows no longer than m <= 256 with two-sided taps (lags, scale)."""
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
