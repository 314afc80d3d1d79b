"""The two stages of the long convolution as separate kernels, for any length. m2bert_ops_triton_dft has the equations.

    transform_rows    stage 1 of every row; it reads x[n1, n2] only up to the last n1 that has a real token
    multiply_spectra  for each m1: stage 2, product with the spectrum, inverse of stage 2, in place
    sum_rows          the inverse of stage 1; not a kernel, but a function that the callers' kernels begin with

The kernels pass their results on in a scratch Z (signals, rows, 2, M1, M2): the real and imaginary planes of A. Its
rows are in the order (channel, batch row). A caller takes a group of channels at a time, so that Z stays in the L2
cache. Before, scale_rows computes the powers of two that rows are multiplied by.
"""

import torch
from torch import Tensor

from .m2bert_ops_triton import tl, triton
from .m2bert_ops_triton_dft import early_part, factors, folded_tables, operand_dtype, stage1_tables

SCRATCH_BYTES = 24 << 20  # size of Z to aim at


@triton.jit
def row_columns(offsets, lengths, batch_row, longest, UNIFORM: tl.constexpr):
    """Return the first column of a row, its number of real columns, and its number of columns.

    UNIFORM says that all rows have `longest` columns. Then nothing but the length is loaded, and the compiler can see
    that rows are aligned.
    """
    length = tl.load(lengths + batch_row)
    if UNIFORM:
        return batch_row * longest, length, longest
    else:
        start = tl.load(offsets + batch_row)
        return start, length, tl.load(offsets + batch_row + 1) - start


@triton.jit
def sample_scale(largest):
    """Return the power of two that brings `largest` into 16 .. 32, at most 2**60, from the bits of its exponent."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    return (tl.minimum(258 - exponent, 187) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["x_stride", "dy_stride", "gate_stride", "batch", "longest"])
def scale_rows(
    scales, products, x, dy, gate, offsets, lengths, x_stride, dy_stride, gate_stride, batch, longest,
    UNIFORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the scales of x and g = dy gate, (channels, batch, 2), and `products`, sums of g x (channels, batch).

    Grid (channels * batch).
    """
    row = tl.program_id(0)
    channel = (row // batch).to(tl.int64)
    start, length, _ = row_columns(offsets, lengths, row % batch, longest, UNIFORM)
    x += channel * x_stride + start
    dy += channel * dy_stride + start
    if gate is not None:
        gate += channel * gate_stride + start
    largest_x = tl.zeros([BLOCK], tl.float32)
    largest_g = tl.zeros([BLOCK], tl.float32)
    product = tl.zeros([BLOCK], tl.float32)
    for first in range(0, length, BLOCK):
        n = first + tl.arange(0, BLOCK)
        sample = tl.load(x + n, mask=n < length, other=0.0).to(tl.float32)
        g = tl.load(dy + n, mask=n < length, other=0.0).to(tl.float32)
        if gate is not None:
            g *= tl.load(gate + n, mask=n < length, other=0.0).to(tl.float32)
        largest_x = tl.maximum(largest_x, tl.abs(sample))
        largest_g = tl.maximum(largest_g, tl.abs(g))
        if products is not None:
            product += sample * g
    tl.store(scales + 2 * row, sample_scale(tl.max(largest_x, 0)))
    tl.store(scales + 2 * row + 1, sample_scale(tl.max(largest_g, 0)))
    if products is not None:
        tl.store(products + row, tl.sum(product, 0))


@triton.jit
def _load(x, n, mask):
    """Load samples n of a row, and zeros where the mask is False. None is no mask."""
    if mask is None:
        return tl.load(x + n)
    else:
        return tl.load(x + n, mask=mask, other=0.0)


@triton.jit
def _load_signal(x, gate, row_scale, n, mask, dtype: tl.constexpr):
    """Load samples n of a row times the gate times the row's scale. gate and row_scale may be None."""
    value = _load(x, n, mask)
    if gate is not None:
        value = value.to(tl.float32) * _load(gate, n, mask).to(tl.float32)
    if row_scale is not None:
        value = value.to(tl.float32) * row_scale
    return value.to(dtype)


@triton.jit
def _stage1_block(real, imaginary, value, entries, within, plane):
    """Add the product of a block of the table's columns and a block of samples to the real and the imaginary sum."""
    real = tl.dot(tl.load(entries, mask=within, other=0.0), value, real, input_precision="ieee")
    table = tl.load(entries + plane, mask=within, other=0.0)
    return real, tl.dot(table, value, imaginary, input_precision="ieee")


@triton.jit
def _stage1(z, table, x, gate, row_scale, length, tile, M1, M2: tl.constexpr, TM: tl.constexpr, BK: tl.constexpr):
    """Store TM rows of A, from m1 = tile * TM on, for one row of x. z points to the row's planes."""
    m1 = tile * TM + tl.arange(0, TM)
    n1 = tl.arange(0, BK)
    n2 = tl.arange(0, M2)
    within = (m1 < M1)[:, None]
    n = n1[:, None] * M2 + n2[None, :]
    entries = table + m1[:, None] * M1 + n1[None, :]
    real = tl.zeros([TM, M2], tl.float32)
    imaginary = tl.zeros([TM, M2], tl.float32)
    full = length // (BK * M2)
    for _ in range(0, full):  # whole blocks load without a mask: wide and asynchronous where rows are aligned
        value = _load_signal(x, gate, row_scale, n, None, z.dtype.element_ty)
        real, imaginary = _stage1_block(real, imaginary, value, entries, within, M1 * M1)
        n += BK * M2
        entries += BK
    if full * BK * M2 < length:
        value = _load_signal(x, gate, row_scale, n, n < length, z.dtype.element_ty)
        real, imaginary = _stage1_block(real, imaginary, value, entries, within, M1 * M1)
    target = z + m1[:, None] * M2 + n2[None, :]
    tl.store(target, real.to(z.dtype.element_ty), mask=within)
    tl.store(target + M1 * M2, imaginary.to(z.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=["first_channel", "first_signal", "rows", "batch"])
def transform_rows(
    z, table, x0, x1, gate, scales, offsets, lengths, stride0, stride1, gate_stride, first_channel, first_signal, rows,
    batch, longest, M1, UNIFORM: tl.constexpr, M2: tl.constexpr, TM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute stage 1 of x0 (signal 0) or x1 (signal 1), multiplied by gate and scales (channels, batch, 2) if given.

    Grid (rows, M1 / TM, signals).
    """
    row, tile, signal = tl.program_id(0), tl.program_id(1), tl.program_id(2) + first_signal
    channel = (first_channel + row // batch).to(tl.int64)
    start, length, _ = row_columns(offsets, lengths, row % batch, longest, UNIFORM)
    x, stride = x0, stride0
    if signal == 1:
        x, stride = x1, stride1
    if gate is not None:
        gate += channel * gate_stride + start
    row_scale = None
    if scales is not None:
        row_scale = tl.load(scales + 2 * (first_channel * batch + row) + signal)
    z += (signal * rows + row).to(tl.int64) * (2 * M1 * M2)
    _stage1(z, table, x + channel * stride + start, gate, row_scale, length, tile, M1, M2, TM, BK)


@triton.jit
def _complex_dot(a_real, a_imaginary, f_real, f_imaginary):
    real = tl.dot(a_real, f_real, input_precision="ieee") - tl.dot(a_imaginary, f_imaginary, input_precision="ieee")
    imaginary = tl.dot(a_real, f_imaginary, input_precision="ieee")
    return real, tl.dot(a_imaginary, f_real, imaginary, input_precision="ieee")


@triton.jit
def stage2(
    z, folded, m2, within, plane, M2: tl.constexpr, TR: tl.constexpr, MC: tl.constexpr, PIECE: tl.constexpr
):  # fmt: skip
    """Return X (TR, MC) at columns m2. z (TR, 1) points to the rows' A[m1, 0], `folded` to the table of m1.

    The sum takes PIECE columns n2 at a time, since float32 products keep a whole piece in registers.
    """
    real = tl.zeros([TR, MC], tl.float32)
    imaginary = tl.zeros([TR, MC], tl.float32)
    for first in range(0, M2, PIECE):
        n2 = first + tl.arange(0, PIECE)
        a_real = tl.load(z + n2[None, :], mask=within, other=0.0)
        a_imaginary = tl.load(z + plane + n2[None, :], mask=within, other=0.0)
        entries = folded + n2[:, None] * M2 + m2[None, :]
        x_real, x_imaginary = _complex_dot(a_real, a_imaginary, tl.load(entries), tl.load(entries + M2 * M2))
        real += x_real
        imaginary += x_imaginary
    return real, imaginary


@triton.jit(do_not_specialize=["first_channel", "first_signal", "rows", "batch"])
def multiply_spectra(
    z, folded, k0, k1, first_channel, first_signal, rows, batch, M1, CONJUGATE_SECOND: tl.constexpr,
    SPLIT: tl.constexpr, M2: tl.constexpr, TR: tl.constexpr, MC: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Compute stage 2, the product with the spectrum, and the inverse of stage 2.

    The spectrum is k0 for signal 0 and k1 for signal 1, conjugated if CONJUGATE_SECOND. SPLIT is the part of 1/M2 that
    is applied before the inverse. MC columns m2 are computed at a time. Grid (rows / TR, M1, signals).
    """
    m1, signal = tl.program_id(1), tl.program_id(2) + first_signal
    row = tl.program_id(0) * TR + tl.arange(0, TR)[:, None]
    within = row < rows
    plane = M1 * M2
    n2 = tl.arange(0, M2)
    m2 = tl.arange(0, MC)
    k = k0
    sign = 1.0
    if signal == 1:
        k = k1
        if CONJUGATE_SECOND:
            sign = -1.0
    k += (first_channel + row // batch).to(tl.int64) * (2 * plane) + m1 * M2 + m2[None, :]
    folded += m1.to(tl.int64) * (2 * M2 * M2)
    z += (signal * rows + row).to(tl.int64) * (2 * plane) + m1 * M2
    a_real = tl.load(z + n2[None, :], mask=within, other=0.0)
    a_imaginary = tl.load(z + plane + n2[None, :], mask=within, other=0.0)
    real = tl.zeros([TR, M2], tl.float32)
    imaginary = tl.zeros([TR, M2], tl.float32)
    for _ in range(0, M2 // MC):
        entries = folded + n2[:, None] * M2 + m2[None, :]
        f_real = tl.load(entries)
        f_imaginary = tl.load(entries + M2 * M2)
        if PIECE == M2:
            x_real, x_imaginary = _complex_dot(a_real, a_imaginary, f_real, f_imaginary)
        else:
            x_real, x_imaginary = stage2(z, folded, m2, within, plane, M2, TR, MC, PIECE)
        k_real = tl.load(k, mask=within, other=0.0).to(tl.float32) * SPLIT
        k_imaginary = tl.load(k + plane, mask=within, other=0.0).to(tl.float32) * (SPLIT * sign)
        y_real = (x_real * k_real - x_imaginary * k_imaginary).to(z.dtype.element_ty)
        y_imaginary = (x_real * k_imaginary + x_imaginary * k_real).to(z.dtype.element_ty)
        f_real = tl.trans(f_real)
        f_imaginary = tl.trans(f_imaginary)
        real = tl.dot(y_real, f_real, real, input_precision="ieee")
        real = tl.dot(y_imaginary, f_imaginary, real, input_precision="ieee")
        imaginary = tl.dot(y_imaginary, f_real, imaginary, input_precision="ieee")
        imaginary = tl.dot(-y_real, f_imaginary, imaginary, input_precision="ieee")
        m2 += MC
        k += MC
    tl.debug_barrier()  # every thread has read Z before any overwrites it
    rest: tl.constexpr = 1 / (M2 * SPLIT)
    tl.store(z + n2[None, :], (real * rest).to(z.dtype.element_ty), mask=within)
    tl.store(z + plane + n2[None, :], (imaginary * rest).to(z.dtype.element_ty), mask=within)


@triton.jit
def sum_rows(z, table, tile, M1, M2: tl.constexpr, TN: tl.constexpr, BK: tl.constexpr):
    """Return the inverse of stage 1: samples (TN, M2) from n1 = tile * TN on. z points to a row's planes."""
    n1 = tile * TN + tl.arange(0, TN)
    m1 = tl.arange(0, BK)
    within = (n1 < M1)[:, None]
    entries = table + n1[:, None] * M1 + m1[None, :]
    z += m1[:, None] * M2 + tl.arange(0, M2)[None, :]
    total = tl.zeros([TN, M2], tl.float32)
    for _ in range(0, M1 // BK):
        cosines = tl.load(entries, mask=within, other=0.0)
        total = tl.dot(cosines, tl.load(z), total, input_precision="ieee")
        sines = tl.load(entries + M1 * M1, mask=within, other=0.0)
        total = tl.dot(sines, tl.load(z + M1 * M2), total, input_precision="ieee")
        entries += BK
        z += BK * M2
    return total


@triton.jit
def tile_places(lengths, length, batch_row, tile, M2: tl.constexpr, TN: tl.constexpr):
    """Return the indices n (TN, M2) of a tile's samples.

    The length is read again, and the compiler must assume that it may have changed. So it computes the indices here
    instead of keeping them in registers since an earlier use.
    """
    zero = tl.load(lengths + batch_row) - length
    return (zero + tile * TN + tl.arange(0, TN))[:, None] * M2 + tl.arange(0, M2)[None, :]


def row_scales(x, dy, gate, offsets, lengths, longest, products=None) -> Tensor:
    """Return the scales that scale_rows computes for x and dy (C, T), (C, B, 2). gate and products may be None."""
    (channels, columns), batch = x.shape, lengths.numel()
    scales = torch.empty(channels, batch, 2, dtype=torch.float32, device=x.device)
    scale_rows[(channels * batch,)](
        scales, products, x, dy, gate, offsets, lengths, x.stride(0), dy.stride(0),
        0 if gate is None else gate.stride(0), batch, longest, UNIFORM=columns == batch * longest, BLOCK=1024,
        num_warps=4,
    )  # fmt: skip
    return scales


class Stages:
    """Tables, tile sizes and launches of the stages for transforms of length m on one device.

    Attributes:
        m, m1, m2: transform length and its factors.
        dtype: of the operands.
        table, inverse, folded: tables of stage 1, its inverse and stage 2.
        tile, block: for stage 1 and its inverse, number of rows of a program's output, and terms of a partial sum.
        rows, columns, piece: for stage 2, number of rows of a program, of columns m2 at a time, and of terms of a
            partial sum.
        options, stage2_options: number of warps and pipeline stages for stage 1 with its inverse, and for stage 2.
    """

    def __init__(self, m: int, dtype: torch.dtype, device: torch.device):
        self.m, (self.m1, self.m2), self.dtype = m, factors(m), operand_dtype(dtype)
        self.table, self.inverse = stage1_tables(self.m1, self.dtype, device)
        self.folded = folded_tables(self.m1, self.m2, self.dtype, device)
        self.columns = min(32, self.m2)
        warps = 8 if self.m2 == 128 else 4
        if self.dtype == torch.float16:
            self.tile, self.block, self.rows, self.piece = min(64, self.m1), 32, 64, self.m2
            self.options = {"num_warps": warps, "num_stages": 4}
            self.stage2_options = {"num_warps": warps, "num_stages": 2}
        else:
            self.tile, self.block, self.rows, self.piece = 32, 16, 32, self.columns
            self.options = {"num_warps": warps, "num_stages": 2}
            self.stage2_options = {"num_warps": 8 if self.m2 > 16 else 4, "num_stages": 1}

    def channels_at_once(self, channels: int, batch: int, signals: int, tile: int) -> int:
        """Return how many channels a group has, so that its Z has about SCRATCH_BYTES: a multiple of `tile`, or all."""
        bytes_per_tile = tile * signals * batch * 2 * self.m * self.dtype.itemsize
        return min(channels, max(1, round(SCRATCH_BYTES / bytes_per_tile)) * tile)

    def scratch(self, signals: int, rows: int, device: torch.device) -> Tensor:
        return torch.empty(signals * rows * 2 * self.m, dtype=self.dtype, device=device)

    def transform(self, z, x, first_channel, rows, offsets, lengths, longest, gate=None, scales=None, first_signal=0):
        """Run transform_rows for x, one or two signals of shape (C, T), whose numbers begin with first_signal."""
        batch = lengths.numel()
        transform_rows[(rows, triton.cdiv(self.m1, self.tile), len(x))](
            z, self.table, x[0], x[-1], gate, scales, offsets, lengths, x[0].stride(0), x[-1].stride(0),
            0 if gate is None else gate.stride(0), first_channel, first_signal, rows, batch, longest, self.m1,
            UNIFORM=x[0].shape[1] == batch * longest, M2=self.m2, TM=self.tile, BK=self.block, **self.options,
        )  # fmt: skip

    def multiply(self, z, spectra, first_channel, rows, batch, signals=(0, 2), conjugate_second=False):
        """Run multiply_spectra for the signals from signals[0] up to, but not including, signals[1]."""
        grid = (triton.cdiv(rows, self.rows), self.m1, signals[1] - signals[0])
        multiply_spectra[grid](
            z, self.folded, spectra[0], spectra[-1], first_channel, signals[0], rows, batch, self.m1,
            CONJUGATE_SECOND=conjugate_second, SPLIT=early_part(self.m2), M2=self.m2, TR=self.rows,
            MC=self.columns, PIECE=self.piece, **self.stage2_options,
        )  # fmt: skip
