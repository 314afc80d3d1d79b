"""The operations of M2-BERT in plain PyTorch: the CPU path, and the oracle that any faster kernel must equal.

Functions of tensors and numbers only. B batch, L length, H channels, N FFT length.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def fft_length(length: int) -> int:
    """Smallest even number >= 2 * length with no prime factor above 5: room for every lag, and a fast FFT."""
    target = max(2 * length, 2)
    best = 1 << (target - 1).bit_length()
    odd_parts = (3**i * 5**j for i in range(12) for j in range(9))
    for odd in odd_parts:
        if odd < best:
            candidate = odd * max(2, 1 << max(0, -(-target // odd) - 1).bit_length())
            if target <= candidate < best:
                best = candidate
    return best


def filter_spectrum(forward_filter: Tensor, reverse_filter: Tensor, n: int) -> Tensor:
    """Spectrum of the two-sided filter.

    Args:
        forward_filter: (H, L), taps for lags 0 .. L-1.
        reverse_filter: (H, L), element j is the tap for lag -(j + 1); the last one is never reached.
        n: FFT length N >= 2 L.

    Returns:
        (H, N // 2 + 1) complex, the real DFT of [forward, 0 .., reverse backwards].
    """
    length = forward_filter.shape[-1]
    taps = torch.cat([F.pad(forward_filter, (0, n - 2 * length)), reverse_filter.flip(-1)], dim=-1)
    return torch.fft.rfft(taps)


def long_conv(x: Tensor, forward_filter: Tensor, reverse_filter: Tensor, skip: Tensor) -> Tensor:
    """Bidirectional long convolution with a skip term (paper section 3; O(L log L) by FFT).

        y_t = sum_{j<=t} h_{t-j} x_j + sum_{j>t} r_{j-t-1} x_j + d x_t

    Args:
        x: (B, H, L), any floating dtype; computed in the filters' dtype (float32 at least).
        forward_filter, reverse_filter: (H, L) h and r.
        skip: (H,) d.

    Returns:
        (B, H, L) in x's dtype.
    """
    length = x.shape[-1]
    n = 2 * length if torch.compiler.is_compiling() else fft_length(length)  # a compiled graph serves many lengths
    signal = x.to(torch.promote_types(x.dtype, forward_filter.dtype))
    spectrum = filter_spectrum(forward_filter, reverse_filter, n)
    y = torch.fft.irfft(torch.fft.rfft(signal, n=n) * spectrum, n=n)[..., :length]
    return torch.addcmul(y, signal, skip[:, None]).to(x.dtype)


def short_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise causal convolution with three taps: s_t = b + w_0 x_{t-2} + w_1 x_{t-1} + w_2 x_t.

    Args:
        x: (B, C, L); positions before the first count as zero.
        weight: (C, 1, 3). bias: (C,).
    """
    return F.conv1d(F.pad(x, (2, 0)), weight, bias, groups=x.shape[1])


def block_diagonal_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Linear map by a block-diagonal matrix: output chunk j = W_j input chunk j.

    Args:
        x: (..., K * in). weight: (K, out, in), K blocks. bias: (K * out,) or None.

    Returns:
        (..., K * out).
    """
    blocks, out_features, in_features = weight.shape
    if blocks == 1:
        return F.linear(x, weight[0], bias)
    chunks = x.reshape(-1, blocks, in_features).transpose(0, 1)  # (K, rows, in)
    y = torch.bmm(chunks, weight.transpose(1, 2)).transpose(0, 1)  # (rows, K, out)
    y = y.reshape(*x.shape[:-1], blocks * out_features)
    return y if bias is None else y + bias
