"""The long convolution of short rows in one launch: a program transforms a row, multiplies it and transforms it back.

m2bert_ops_triton_dft has the equations. A row of M <= 8192 samples is a matrix (M1, M2) in registers. Stage 1
multiplies it by a table from the left, stage 2 from the right. So it is neither transposed nor stored in between.
"""

import torch
from torch import Tensor

from .m2bert_ops_triton import tl, triton
from .m2bert_ops_triton_dft import early_part, factors, stage1_tables, stage2_tables
from .m2bert_ops_triton_stages import row_columns, sample_scale


@triton.jit
def _places(zero, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the offsets of a matrix's elements.

    `zero` is 0, but the compiler does not know this. So it computes offsets and loads samples again, instead of keeping
    them in registers, of which these kernels have too few.
    """
    return (zero + tl.arange(0, ROWS))[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _complex_tile(planes, zero, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    entries = planes + _places(zero, ROWS, COLUMNS)
    return tl.load(entries), tl.load(entries + ROWS * COLUMNS)


@triton.jit
def _convolve(
    x, spectrum, stage1, inverse1, twiddle, stage2, zero, SPLIT: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr
):  # fmt: skip
    """Return the convolution (M1, M2), still divided by the spectrum's scale, of samples x (M1, M2) in the operands'
    dtype.

    Barriers keep the compiler from loading tables long before they are used.
    """
    entries = _places(zero, M1, M1)
    real = tl.dot(tl.load(stage1 + entries), x)
    tl.debug_barrier()
    imaginary = tl.dot(tl.load(stage1 + M1 * M1 + entries), x)
    tl.debug_barrier()
    t_real, t_imaginary = _complex_tile(twiddle, zero, M1, M2)
    a_real = (real * t_real - imaginary * t_imaginary).to(x.dtype)
    a_imaginary = (real * t_imaginary + imaginary * t_real).to(x.dtype)
    tl.debug_barrier()
    f_real, f_imaginary = _complex_tile(stage2, zero, M2, M2)
    real = tl.dot(a_real, f_real)
    real = tl.dot(-a_imaginary, f_imaginary, real)
    imaginary = tl.dot(a_real, f_imaginary)
    imaginary = tl.dot(a_imaginary, f_real, imaginary)
    tl.debug_barrier()
    k_real, k_imaginary = _complex_tile(spectrum, zero, M1, M2)
    y_real = ((real * k_real - imaginary * k_imaginary) * SPLIT).to(x.dtype)
    y_imaginary = ((real * k_imaginary + imaginary * k_real) * SPLIT).to(x.dtype)
    real = tl.dot(y_real, f_real)
    real = tl.dot(y_imaginary, f_imaginary, real)
    imaginary = tl.dot(y_imaginary, f_real)
    imaginary = tl.dot(-y_real, f_imaginary, imaginary)
    tl.debug_barrier()
    rest: tl.constexpr = 1 / (M2 * SPLIT)
    t_real, t_imaginary = _complex_tile(twiddle, zero, M1, M2)
    b_real = ((real * t_real + imaginary * t_imaginary) * rest).to(x.dtype)
    b_imaginary = ((imaginary * t_real - real * t_imaginary) * rest).to(x.dtype)
    tl.debug_barrier()
    y = tl.dot(tl.load(inverse1 + entries), b_real)
    tl.debug_barrier()
    return tl.dot(tl.load(inverse1 + M1 * M1 + entries), b_imaginary, y)


@triton.jit(do_not_specialize=["y_stride", "x_stride", "gate_stride", "residual_stride", "batch", "longest"])
def convolve_rows(
    y, x, gate, residual, spectrum, residual_spectrum, scale, residual_scale, skip, residual_skip, stage1, inverse1,
    twiddle, stage2, offsets, lengths, y_stride, x_stride, gate_stride, residual_stride, batch, longest,
    SIGNALS: tl.constexpr, UNIFORM: tl.constexpr, SPLIT: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr,
):  # fmt: skip
    """Compute both convolutions (one if SIGNALS is 1), skip terms and gate of one row of one channel.

    Grid (channels * batch). Programs of the same channel are neighbors, so that its spectra are read from the cache.
    """
    channel = (tl.program_id(0) // batch).to(tl.int64)
    batch_row = tl.program_id(0) % batch
    start, length, width = row_columns(offsets, lengths, batch_row, longest, UNIFORM)
    gate += channel * gate_stride + start
    total = tl.zeros([M1, M2], tl.float32)
    for signal in range(0, SIGNALS):
        if residual is not None:  # noqa: SIM102 (decided by the compiler, the inner one at run time)
            if signal == 1:
                x, x_stride, spectrum = residual, residual_stride, residual_spectrum
                scale, skip = residual_scale, residual_skip
        samples = x + channel * x_stride + start
        planes = spectrum + channel * (2 * M1 * M2)
        tl.debug_barrier()
        zero = tl.load(lengths + batch_row) - length
        n = _places(zero, M1, M2)
        value = tl.load(samples + n, mask=n < length, other=0.0).to(tl.float32)
        row_scale = sample_scale(tl.max(tl.abs(value)))
        value = (value * row_scale).to(stage1.dtype.element_ty)
        part = _convolve(value, planes, stage1, inverse1, twiddle, stage2, zero, SPLIT, M1, M2)
        tl.debug_barrier()
        n = _places(tl.load(lengths + batch_row) - length, M1, M2)
        value = tl.load(samples + n, mask=n < length, other=0.0).to(tl.float32)
        factor = tl.load(gate + n, mask=(n < length) & (signal == 0), other=1.0).to(tl.float32)
        total += (part * (tl.load(scale + channel) / row_scale) + tl.load(skip + channel) * value) * factor
    n = _places(tl.load(lengths + batch_row) - length, M1, M2)
    y += channel * y_stride + start
    tl.store(y + n, tl.where(n < length, total, 0.0).to(y.dtype.element_ty), mask=n < width)


def long_conv_fused(
    gated, gate, residual, prepared, residual_prepared, skip, residual_skip, offsets, lengths, longest, m
) -> Tensor:
    """Compute long_conv of 16-bit activations with spectra, (planes, scale), for transforms of length 512 to 8192."""
    (m1, m2), batch, dtype = factors(m), lengths.numel(), prepared[0].dtype
    residual_planes, residual_scale = residual_prepared or (None, None)
    y = torch.empty(gated.shape, dtype=gated.dtype, device=gated.device)
    convolve_rows[(gated.shape[0] * batch,)](
        y, gated, gate, residual, prepared[0], residual_planes, prepared[1], residual_scale, skip, residual_skip,
        *stage1_tables(m1, dtype, gated.device), *stage2_tables(m1, m2, dtype, gated.device), offsets, lengths,
        y.stride(0), gated.stride(0), gate.stride(0), 0 if residual is None else residual.stride(0), batch, longest,
        SIGNALS=1 if residual is None else 2, UNIFORM=gated.shape[1] == batch * longest, SPLIT=early_part(m2), M1=m1,
        M2=m2, num_warps=8 if m > 4096 else 4, num_stages=1,
    )  # fmt: skip
    return y
