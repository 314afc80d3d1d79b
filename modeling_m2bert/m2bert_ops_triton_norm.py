"""LayerNorm of a sum of two streams as one Triton kernel, stored channel-major for the next layer's sequence mixer.

    z = (x + y - mean) * rstd * weight + bias, mean and variance over the channels; all arithmetic in float32

A program holds a few tokens with all their channels, so that each input is read once. It writes them transposed, since
the mixer works on (H, T) and would otherwise have to transpose. Backward computes mean and rstd again.
"""

import torch
from torch import Tensor

from .m2bert_ops_triton import tl, triton

# Number of elements (tokens x channels) of a program, and of one of its warps. With up to 1024 channels, a program has
# at least 16 tokens, which fill whole sectors of memory.
TILE, TILE_OF_WARP = 16384, 2048
TILE_BACKWARD, TILE_OF_WARP_BACKWARD = 4096, 512
# Largest number of programs. Each has its own sums of parameter gradients. A constant makes results repeat exactly.
PROGRAMS_BACKWARD = 264


@triton.jit
def _load(x, t, h, stride_t, stride_h, mask):
    return tl.load(x + t.to(tl.int64)[:, None] * stride_t + h.to(tl.int64)[None, :] * stride_h, mask=mask, other=0.0)


@triton.jit
def _sum_of_streams(x, y, t, h, stride_xt, stride_xh, stride_yt, stride_yh, mask):
    total = _load(x, t, h, stride_xt, stride_xh, mask).to(tl.float32)
    return total + _load(y, t, h, stride_yt, stride_yh, mask).to(tl.float32)


@triton.jit
def _normalize(x, mask, channels, eps):
    """Return (x - mean) * rstd, which is zero outside the mask, and rstd (tokens, 1)."""
    centered = tl.where(mask, x - (tl.sum(x, axis=1) / channels)[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centered * centered, axis=1) / channels + eps)[:, None]
    return centered * rstd, rstd


@triton.jit
def _add_layer_norm_kernel(
    x, y, weight, bias, z, tokens, channels, eps, stride_xt, stride_xh, stride_yt, stride_yh, stride_zh,
    TILE_T: tl.constexpr, TILE_H: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * TILE_T + tl.arange(0, TILE_T)
    h = tl.arange(0, TILE_H)
    mask = (t < tokens)[:, None] & (h < channels)[None, :]
    total = _sum_of_streams(x, y, t, h, stride_xt, stride_xh, stride_yt, stride_yh, mask)
    normalized, _ = _normalize(total, mask, channels, eps)
    w = tl.load(weight + h, mask=h < channels, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + h, mask=h < channels, other=0.0).to(tl.float32)[None, :]
    tl.store(z + h.to(tl.int64)[None, :] * stride_zh + t[:, None], normalized * w + b, mask=mask)


@triton.jit
def _add_layer_norm_backward_kernel(
    dz, x, y, weight, dx, partials, tokens, channels, eps,
    stride_dzt, stride_dzh, stride_xt, stride_xh, stride_yt, stride_yh,
    TILE_T: tl.constexpr, TILE_H: tl.constexpr,
):  # fmt: skip
    h = tl.arange(0, TILE_H)
    w = tl.load(weight + h, mask=h < channels, other=0.0).to(tl.float32)[None, :]
    d_weight = tl.zeros((TILE_H,), tl.float32)
    d_bias = tl.zeros((TILE_H,), tl.float32)
    # A program takes neighboring tiles, since a channel-major dz has these in the same sectors of memory.
    tiles = tl.cdiv(tl.cdiv(tokens, TILE_T), tl.num_programs(0))
    for tile in range(tiles):
        t = (tl.program_id(0) * tiles + tile) * TILE_T + tl.arange(0, TILE_T)
        mask = (t < tokens)[:, None] & (h < channels)[None, :]
        total = _sum_of_streams(x, y, t, h, stride_xt, stride_xh, stride_yt, stride_yh, mask)
        normalized, rstd = _normalize(total, mask, channels, eps)
        gradient = _load(dz, t, h, stride_dzt, stride_dzh, mask).to(tl.float32)
        d_weight += tl.sum(gradient * normalized, axis=0)
        d_bias += tl.sum(gradient, axis=0)
        gradient *= w
        mean = (tl.sum(gradient, axis=1) / channels)[:, None]
        projection = (tl.sum(gradient * normalized, axis=1) / channels)[:, None]
        d_total = rstd * (gradient - mean - normalized * projection)
        tl.store(dx + t.to(tl.int64)[:, None] * channels + h[None, :], d_total, mask=mask)
    partials += tl.program_id(0) * 2 * channels + h  # (programs, 2, H)
    tl.store(partials, d_weight, mask=h < channels)
    tl.store(partials + channels, d_bias, mask=h < channels)


def add_layer_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return LayerNorm(x + y) in x's dtype, a transposed view of a contiguous (H, T).

    x and y are float32, float16 or bfloat16, with any strides.
    """
    tokens, channels = x.shape
    z = torch.empty(channels, tokens, dtype=x.dtype, device=x.device)
    if tokens:
        tile_t, tile_h, num_warps = _tile(channels, TILE, TILE_OF_WARP)
        _add_layer_norm_kernel[(triton.cdiv(tokens, tile_t),)](
            x, y, weight, bias, z, tokens, channels, eps, *x.stride(), *y.stride(), z.stride(0),
            TILE_T=tile_t, TILE_H=tile_h, num_warps=num_warps,
        )  # fmt: skip
    return z.T


def add_layer_norm_backward(
    dz: Tensor, x: Tensor, y: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of add_layer_norm.

    Args:
        dz: (T, H), any strides. The others: as in the forward.

    Returns:
        dx (T, H), contiguous, in x's dtype, the gradient of both x and y; d_weight and d_bias (H,) in float32.
    """
    tokens, channels = x.shape
    dx = torch.empty(tokens, channels, dtype=x.dtype, device=x.device)
    tile_t, tile_h, num_warps = _tile(channels, TILE_BACKWARD, TILE_OF_WARP_BACKWARD)
    programs = min(triton.cdiv(tokens, tile_t), PROGRAMS_BACKWARD)
    partials = torch.empty(programs, 2, channels, dtype=torch.float32, device=x.device)
    if tokens:
        _add_layer_norm_backward_kernel[(programs,)](
            dz, x, y, weight, dx, partials, tokens, channels, eps,
            *dz.stride(), *x.stride(), *y.stride(),
            TILE_T=tile_t, TILE_H=tile_h, num_warps=num_warps,
        )  # fmt: skip
    d_weight, d_bias = partials.sum(0)
    return dx, d_weight, d_bias


def _tile(channels: int, elements: int, of_warp: int) -> tuple[int, int, int]:
    """Return the numbers of tokens, channels and warps of a program."""
    tile_h = triton.next_power_of_2(channels)
    tile_t = min(64, max(1, elements // tile_h))
    return tile_t, tile_h, min(16, max(1, tile_t * tile_h // of_warp))
