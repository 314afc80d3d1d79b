"""Long convolution by matrix products: the algorithm, its tables, and the spectrum of a filter.

Per channel, with h the forward and r the reverse taps of a filter, x real and shorter than M:

    y[t] = sum_{j<=t} h[t-j] x[j] + sum_{j>t} r[j-t-1] x[j]                                                  (1)

**Right-angle convolution.** Put both directions into one complex filter k[n] = h[n] + i r[M-1-n], and multiply
sequences by w**n, w = exp(-2 pi i / 4M), before a discrete Fourier transform of length M. The product of two such
transforms is the transform of a convolution. In this convolution a term that wraps around the end is multiplied by
w**M = -i, a right angle. So wrapped forward taps become imaginary, wrapped reverse taps become real, and the real part
is (1):

    X[m] = sum_n x[n] e(n (m + 1/4) / M)          e(a) = exp(-2 pi i a)                                       (2)
    K[m] = sum_n k[n] w**n e(n m / M)             taps beyond P are 0; r[M-1] has no effect on (4)            (3)
    y[n] = 1/M Re sum_m K[m] X[m] conj e(n (m + 1/4) / M)                                                     (4)

So M points are enough for a signal of M samples, without the usual padding to 2M. The spectrum has no symmetric half to
skip, no special first or last bin, and no reversed index.

**Two stages.** With M = M1 M2, n = M2 n1 + n2 and m = m1 + M1 m2, (2) splits into matrix products of x seen as a
matrix x[n1, n2] in its own memory order:

    A[m1, n2] = sum_n1 e(n1 (m1 + 1/4) / M1) x[n1, n2]                        stage 1: two real products      (5)
    X[m1, m2] = sum_n2 A[m1, n2] e(n2 (m1 + 1/4) / M) e(n2 m2 / M2)           stage 2: twiddle, four products (6)

The inverse (4) is the conjugate of (6), then the real part of the conjugate of (5). m1 stays the row, m2 or n2 the
column, so nothing is ever transposed. Transform and inverse together cost 8 M1 + 16 M2 operations per sample.

**Half precision.** Operands are float16, sums float32. Each row is multiplied by its scale, a power of two that brings
its largest magnitude into 16 .. 32, and the result is divided by the scale in float32. So samples of any size have the
full precision of float16 relative to the largest of their row. Every number that is rounded to float16 should be about
as large as the samples. So the factor 1/M is spread: the tables of stage 1 and of its inverse each contain 1/sqrt(M1),
a part of 1/M2 is applied before the inverse of stage 2, and the rest after it. The spectrum of each channel is divided
by a power of two, so that its real and imaginary parts are below 1. A constant row still grows, by sqrt(2 M) at most:
it stays below 65504 up to M = 2 million.

**Gradients.** Let G be the transform (2) of dy. The gradient of x is (4) with conj K in place of K and G in place of X.
The gradient of K is the sum of conj(X) G / M over the batch; its real part is the gradient of K's real part, its
imaginary part that of K's imaginary part. (3) then gives

    g[n] = conj(w**n) sum_m dK[m] conj e(n m / M),   dh[n] = Re g[n],   dr[M-1-n] = Im g[n]                    (7)

R. Crandall, B. Fagin, "Discrete weighted transforms and large-integer arithmetic", Math. Comp. 62 (1994), describe the
weighting. D. Fu et al., "FlashFFTConv", 2023, describe convolution by two-stage matrix products.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .m2bert_ops_filter import prepare_to_keep

TOEPLITZ_LONGEST = 256  # up to here one matrix product per channel beats the transforms
FUSED_LONGEST = 8192  # up to here a transform stays in the registers of one program
SHORTEST_TRANSFORM = 512
SPECTRUM_BYTES = 1 << 26  # temporary memory for the computation of a spectrum

_FACTORS = {512: (32, 16), 1024: (64, 16), 2048: (64, 32), 4096: (64, 64), 8192: (128, 64)}


def transform_length(longest: int) -> int:
    """Return the smallest possible M >= longest.

    M is a power of two from 16 to 8192; above, it is 1, 1.25 or 1.5 times a power of two.
    """
    power = 1 << max(longest - 1, 15).bit_length()
    if power <= FUSED_LONGEST:
        return power
    return next(m for m in (power * 5 // 8, power * 3 // 4, power) if m >= longest)


def factors(m: int) -> tuple[int, int]:
    """Return M1 (a multiple of 32) and M2 (a power of two >= 16) with M1 M2 = m. M1 = 2 M2 would cost least."""
    if m in _FACTORS:
        return _FACTORS[m]
    m2 = 64 if m < 2 * FUSED_LONGEST else 128
    return m // m2, m2


def early_part(m2: int) -> float:
    """Return the part of 1/M2 that is applied before the inverse of stage 2: a power of two near 1/sqrt(M2)."""
    return 2.0 ** -math.ceil(math.log2(m2) / 2)


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the operands of matrix products for activations of `dtype`.

    For bfloat16 activations it is float16, too, since rounding to bfloat16 makes errors eight times as large.
    """
    return torch.float32 if dtype == torch.float32 else torch.float16


def _circle(index: Tensor, period: int) -> tuple[Tensor, Tensor]:
    """Return the real and imaginary part of e(index / period), float64. index is an integer, so `%` is exact."""
    angle = (index % period).double() * (2 * math.pi / period)
    return angle.cos(), -angle.sin()


def _kept(build: Callable) -> Callable:
    """Keep what `build` returns for its arguments, the last a device, until the process ends: CUDA graphs may read it.

    All tables of one dtype up to M = 32768 have about 70 MB.
    """

    @functools.cache
    @functools.wraps(build)
    def kept(*arguments):
        return prepare_to_keep(arguments[-1], lambda: build(*arguments))

    return kept


@_kept
def stage1_tables(m1: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return e(n1 (m1 + 1/4) / M1) / sqrt(M1) as real and imaginary planes (2, M1, M1), and the same transposed.

    The first one has rows m1, the second one rows n1.
    """
    n1 = torch.arange(m1, device=device)
    table = torch.stack(_circle((4 * n1[:, None] + 1) * n1, 4 * m1)) / math.sqrt(m1)
    return table.to(dtype), table.mT.to(dtype).contiguous()


@_kept
def stage2_tables(m1: int, m2: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the twiddle e(n2 (m1 + 1/4) / M) (2, M1, M2), and e(n2 m2 / M2) (2, M2, M2), which is symmetric."""
    rows, n2 = torch.arange(m1, device=device)[:, None], torch.arange(m2, device=device)
    twiddle = torch.stack(_circle((4 * rows + 1) * n2, 4 * m1 * m2))
    return twiddle.to(dtype), torch.stack(_circle(n2[:, None] * n2, m2)).to(dtype)


@_kept
def folded_tables(m1: int, m2: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the product of both factors of stage 2, a matrix for each m1: (M1, 2, M2, M2) by (m1, plane, n2, m2)."""
    n2 = torch.arange(m2, device=device)
    table = torch.empty(m1, 2, m2, m2, dtype=dtype, device=device)
    for row in range(m1):  # computed in float64; all rows at once would take four times the table's memory
        real, imaginary = _circle(n2[:, None] * (4 * row + 1 + 4 * m1 * n2), 4 * m1 * m2)
        table[row, 0], table[row, 1] = real, imaginary
    return table


def _weights(m: int, device: torch.device) -> Tensor:
    """Return w**n for n < M, complex64."""
    return torch.complex(*_circle(torch.arange(m, device=device), 4 * m)).to(torch.complex64)


def power_of_two_scale(largest: Tensor) -> Tensor:
    """Return the smallest power of two above `largest` (1 for zero), float32. Division by it is exact."""
    return torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)


def spectrum(taps: Tensor, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the spectrum (3) of a filter, in the order in which stage 2 reads it.

    Args:
        taps: (2, H, P) float32, forward and reverse. Taps beyond P count as zero, taps beyond M are not used.
        m: transform length M, at least SHORTEST_TRANSFORM.
        dtype: of the activations.

    Returns:
        planes: (H, 2, M1, M2) in the operands' dtype, real and imaginary part of K[m1 + M1 m2] / scale.
        scale: (H,), powers of two.
    """
    m1, m2 = factors(m)
    channels, length = taps.shape[1], min(taps.shape[2], m)
    planes = taps.new_empty(channels, 2, m1, m2, dtype=operand_dtype(dtype))
    scale = taps.new_empty(channels)
    weights = _weights(m, taps.device)
    step = max(1, SPECTRUM_BYTES // (32 * m))
    for first in range(0, channels, step):
        part = slice(first, first + step)
        filters = taps.new_zeros(2, planes[part].shape[0], m)
        filters[0, :, :length] = taps[0, part, :length]
        filters[1, :, m - length :] = taps[1, part, :length].flip(-1)
        k = torch.fft.fft(torch.complex(filters[0], filters[1]) * weights)
        k = torch.view_as_real(k.unflatten(1, (m2, m1)).mT).movedim(-1, 1)  # (channels, 2, M1, M2)
        scale[part] = power_of_two_scale(k.abs().amax((1, 2, 3)))
        planes[part] = k / scale[part, None, None, None]
    return planes, scale


def taps_gradient(d_spectrum: Tensor, m: int, reach: int) -> Tensor:
    """Return the gradient (7) of the first `reach` taps of each direction, (2, H, reach) float32.

    Args:
        d_spectrum: (H, 2, M1, M2) float32, real and imaginary part of conj(X) G, without the factor 1/M.
        m: transform length M.
        reach: number of taps that the rows are long enough to use.
    """
    d = torch.complex(d_spectrum[:, 0], d_spectrum[:, 1]).mT.flatten(1)  # (H, M) in the order of m
    g = torch.fft.ifft(d) * torch.conj_physical(_weights(m, d.device))
    return torch.stack([g.real[:, :reach], g.imag[:, m - reach :].flip(-1)])
