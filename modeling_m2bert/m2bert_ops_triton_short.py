"""Short convolution and gate of the sequence mixer as Triton kernels (paper section 3, figure 1).

    a_t = projected_t + projection_bias for 0 <= t < length, zero before the row's start
    s_t = bias + w_0 a_{t-2} + w_1 a_{t-1} + w_2 a_t,  [x1 | x2 | v] = s;  gated = v * x1, gate = x2

All texts of the batch lie side by side in (C, T). A program takes a tile of columns, which may belong to several texts.
It finds these texts, and gives each column the bounds of its text. So every program has work, even in a batch of one
long and many short texts. Arithmetic is float32. A program sums the parameter gradients of its tile, and torch adds up
the tiles. There are no atomics, so that repeated runs agree to the last bit.
"""

import torch
from torch import Tensor

from .m2bert_ops_triton import tl, triton

TILE_T = 256  # columns of a program
# Channels of x1, x2 and v that a program computes at once, and the number of such steps. So 16 channels share one
# search for the texts.
TILE_C, STEPS_C = 2, 8
TILE_C_BACKWARD, STEPS_C_BACKWARD = 1, 16
TILE_R = 256  # texts that the search looks at together


@triton.jit
def _row_bounds(t, first, offsets, lengths, rows, TILE_T: tl.constexpr, TILE_R: tl.constexpr):
    """Return, for each of the columns t = first, .., the first column and the end of its text; end 0 without a text."""
    row = 0
    for r0 in range(0, rows, TILE_R):
        r = r0 + tl.arange(0, TILE_R)
        ends = tl.load(offsets + 1 + r, mask=r < rows, other=2147483647)
        row += tl.sum((ends <= first).to(tl.int32))
    begin = tl.zeros((TILE_T,), tl.int32)
    end = tl.zeros((TILE_T,), tl.int32)
    slot = tl.load(offsets + row)
    while (row < rows) & (slot < first + TILE_T):
        here = t >= slot
        begin = tl.where(here, slot, begin)
        end = tl.where(here, slot + tl.load(lengths + row), end)
        row += 1
        slot = tl.load(offsets + row)
    return begin, end


@triton.jit
def _inside(t, shift: tl.constexpr, begin, end, mask):
    """Return where t is a real column and t + shift belongs to the same text; `mask` says which channels exist."""
    return mask[:, None] & ((t + shift >= begin) & (t + shift < end) & (t < end))[None, :]


@triton.jit
def _ahead(x, stride, t, begin, end, c, mask):
    """Load channels c of x (C, T) at the columns t, t + 1 and t + 2 in float32; zero outside the text of t."""
    x += c.to(tl.int64)[:, None] * stride + t[None, :]
    x0 = tl.load(x, mask=_inside(t, 0, begin, end, mask), other=0.0).to(tl.float32)
    x1 = tl.load(x + 1, mask=_inside(t, 1, begin, end, mask), other=0.0).to(tl.float32)
    x2 = tl.load(x + 2, mask=_inside(t, 2, begin, end, mask), other=0.0).to(tl.float32)
    return x0, x1, x2


@triton.jit
def _channel(parameter, c, mask):
    """Load the values of a parameter for the channels c as (channels, 1) in float32."""
    return tl.load(parameter + c, mask=mask, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _projected(x, t, shift: tl.constexpr, begin, end, mask, bias):
    """Return a_{t + shift}, the projected input plus its bias; zero outside the text of t."""
    inside = _inside(t, shift, begin, end, mask)
    return tl.where(inside, tl.load(x + shift, mask=inside, other=0.0).to(tl.float32) + bias, 0.0)


@triton.jit
def _short_conv(projected, stride, projection_bias, weight, bias, t, begin, end, c, mask):
    """Return s_t, s_{t+1}, s_{t+2}, a_{t-2}, a_{t-1} and a_t for the channels c.

    The compiler removes the loads of what a caller does not use.
    """
    b, p = _channel(bias, c, mask), _channel(projection_bias, c, mask)
    w0, w1, w2 = _channel(weight, 3 * c, mask), _channel(weight, 3 * c + 1, mask), _channel(weight, 3 * c + 2, mask)
    x = projected + c.to(tl.int64)[:, None] * stride + t[None, :]
    a0 = _projected(x, t, -2, begin, end, mask, p)
    a1 = _projected(x, t, -1, begin, end, mask, p)
    a2 = _projected(x, t, 0, begin, end, mask, p)
    a3 = _projected(x, t, 1, begin, end, mask, p)
    a4 = _projected(x, t, 2, begin, end, mask, p)
    s0 = b + w0 * a0 + w1 * a1 + w2 * a2
    s1 = b + w0 * a1 + w1 * a2 + w2 * a3
    s2 = b + w0 * a2 + w1 * a3 + w2 * a4
    return s0, s1, s2, a0, a1, a2


@triton.jit
def _short_conv_gate_kernel(
    projected, projection_bias, weight, bias, offsets, lengths, gated, gate,
    channels, columns, rows, stride_projected, stride_gated, stride_gate,
    TILE_T: tl.constexpr, TILE_C: tl.constexpr, STEPS_C: tl.constexpr, TILE_R: tl.constexpr,
):  # fmt: skip
    # offsets[0] is zero, but it is read so that the compiler does not know this and assumes no alignment of t. Columns
    # t - 1 and t - 2 have none, and all three should have the same layout: neighboring columns in neighboring threads.
    first = tl.load(offsets) + tl.program_id(0) * TILE_T
    t = first + tl.arange(0, TILE_T)
    begin, end = _row_bounds(t, first, offsets, lengths, rows, TILE_T, TILE_R)
    for step in range(STEPS_C):
        c = (tl.program_id(1) * STEPS_C + step) * TILE_C + tl.arange(0, TILE_C)
        mask = c < channels
        x1, _, _, _, _, _ = _short_conv(
            projected, stride_projected, projection_bias, weight, bias, t, begin, end, c, mask
        )
        x2, _, _, _, _, _ = _short_conv(
            projected, stride_projected, projection_bias, weight, bias, t, begin, end, c + channels, mask
        )
        v, _, _, _, _, _ = _short_conv(
            projected, stride_projected, projection_bias, weight, bias, t, begin, end, c + 2 * channels, mask
        )
        real, stored = (t < end)[None, :], mask[:, None] & (t < columns)[None, :]
        gated_at = gated + c.to(tl.int64)[:, None] * stride_gated + t[None, :]
        gate_at = gate + c.to(tl.int64)[:, None] * stride_gate + t[None, :]
        tl.store(gated_at, tl.where(real, v * x1, 0.0), mask=stored)
        tl.store(gate_at, tl.where(real, x2, 0.0), mask=stored)


@triton.jit
def _short_conv_backward(
    ds0, ds1, ds2, a0, a1, a2, weight, d_projected, stride, partials, t, c, mask, channels, columns
):  # fmt: skip
    """Store the gradients of the channels c: those of projected, and the tile's sums for the parameters.

    ds0, ds1 and ds2 are the gradients of s_t, s_{t+1} and s_{t+2}, zero outside the text of t.
    """
    w0, w1, w2 = _channel(weight, 3 * c, mask), _channel(weight, 3 * c + 1, mask), _channel(weight, 3 * c + 2, mask)
    da = w2 * ds0 + w1 * ds1 + w0 * ds2
    stored = mask[:, None] & (t < columns)[None, :]
    tl.store(d_projected + c.to(tl.int64)[:, None] * stride + t[None, :], da, mask=stored)
    partials += tl.program_id(0).to(tl.int64) * 15 * channels + c  # (tiles, 5, 3 H)
    tl.store(partials, tl.sum(ds0 * a0, axis=1), mask=mask)
    tl.store(partials + 3 * channels, tl.sum(ds0 * a1, axis=1), mask=mask)
    tl.store(partials + 6 * channels, tl.sum(ds0 * a2, axis=1), mask=mask)
    tl.store(partials + 9 * channels, tl.sum(ds0, axis=1), mask=mask)
    tl.store(partials + 12 * channels, tl.sum(da, axis=1), mask=mask)


@triton.jit
def _short_conv_gate_backward_kernel(
    d_gated, d_gate, projected, projection_bias, weight, bias, offsets, lengths, d_projected, partials,
    channels, columns, rows, stride_d_gated, stride_d_gate, stride_projected, stride_d_projected,
    TILE_T: tl.constexpr, TILE_C: tl.constexpr, STEPS_C: tl.constexpr, TILE_R: tl.constexpr,
):  # fmt: skip
    first = tl.load(offsets) + tl.program_id(0) * TILE_T
    t = first + tl.arange(0, TILE_T)
    begin, end = _row_bounds(t, first, offsets, lengths, rows, TILE_T, TILE_R)
    for step in range(STEPS_C):
        c = (tl.program_id(1) * STEPS_C + step) * TILE_C + tl.arange(0, TILE_C)
        mask = c < channels
        c2, c3 = c + channels, c + 2 * channels

        _, _, _, a0, a1, a2 = _short_conv(
            projected, stride_projected, projection_bias, weight, bias, t, begin, end, c2, mask
        )
        g0, g1, g2 = _ahead(d_gate, stride_d_gate, t, begin, end, c, mask)
        _short_conv_backward(
            g0, g1, g2, a0, a1, a2,
            weight, d_projected, stride_d_projected, partials, t, c2, mask, channels, columns,
        )  # fmt: skip

        x0, x1, x2, a0, a1, a2 = _short_conv(
            projected, stride_projected, projection_bias, weight, bias, t, begin, end, c, mask
        )
        v0, v1, v2, e0, e1, e2 = _short_conv(
            projected, stride_projected, projection_bias, weight, bias, t, begin, end, c3, mask
        )
        g0, g1, g2 = _ahead(d_gated, stride_d_gated, t, begin, end, c, mask)
        _short_conv_backward(
            g0 * v0, g1 * v1, g2 * v2, a0, a1, a2,
            weight, d_projected, stride_d_projected, partials, t, c, mask, channels, columns,
        )  # fmt: skip
        _short_conv_backward(
            g0 * x0, g1 * x1, g2 * x2, e0, e1, e2,
            weight, d_projected, stride_d_projected, partials, t, c3, mask, channels, columns,
        )  # fmt: skip


def short_conv_gate(projected, projection_bias, weight, bias, offsets, lengths, longest) -> tuple[Tensor, Tensor]:
    """Compute the short convolution and the first gate; arguments as in m2bert_ops.

    projected is float32, float16 or bfloat16 with stride(1) == 1. `longest` is not used here.
    """
    channels, columns = projected.shape[0] // 3, projected.shape[1]
    gated, gate = (torch.empty(channels, columns, dtype=projected.dtype, device=projected.device) for _ in range(2))
    if channels and columns:
        grid = (triton.cdiv(columns, TILE_T), triton.cdiv(channels, TILE_C * STEPS_C))
        _short_conv_gate_kernel[grid](
            projected, projection_bias, weight.contiguous(), bias, offsets, lengths, gated, gate,
            channels, columns, lengths.shape[0], projected.stride(0), gated.stride(0), gate.stride(0),
            TILE_T=TILE_T, TILE_C=TILE_C, STEPS_C=STEPS_C, TILE_R=TILE_R,
        )  # fmt: skip
    return gated, gate


def short_conv_gate_backward(
    d_gated, d_gate, projected, projection_bias, weight, bias, offsets, lengths, longest
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of short_conv_gate; x1 and v are computed again from projected.

    Args:
        d_gated, d_gate: (H, T), stride(1) == 1; values in padding are not used. The others: as in the forward.

    Returns:
        d_projected (3 H, T) in projected's dtype, zero in padding; d_projection_bias (3 H,), d_weight (3 H, 3) and
        d_bias (3 H,) in float32.
    """
    channels, columns = projected.shape[0] // 3, projected.shape[1]
    d_projected = torch.empty(3 * channels, columns, dtype=projected.dtype, device=projected.device)
    tiles = triton.cdiv(columns, TILE_T)
    partials = torch.empty(tiles, 5, 3 * channels, dtype=torch.float32, device=projected.device)
    if channels and columns:
        grid = (tiles, triton.cdiv(channels, TILE_C_BACKWARD * STEPS_C_BACKWARD))
        _short_conv_gate_backward_kernel[grid](
            d_gated, d_gate, projected, projection_bias, weight.contiguous(), bias, offsets, lengths, d_projected,
            partials, channels, columns, lengths.shape[0],
            d_gated.stride(0), d_gate.stride(0), projected.stride(0), d_projected.stride(0),
            TILE_T=TILE_T, TILE_C=TILE_C_BACKWARD, STEPS_C=STEPS_C_BACKWARD, TILE_R=TILE_R,
        )  # fmt: skip
    sums = partials.sum(0)
    return d_projected, sums[4], sums[:3].T.contiguous(), sums[3]
