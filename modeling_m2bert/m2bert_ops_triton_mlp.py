"""Gated block-diagonal feed-forward network (paper section 3).

    [gate | value] = up(x),  act = gelu(gate) * value,  dropout,  y = down(act) + bias

A Triton kernel computes act from x, and cuBLAS computes y from act.

The I channels of act have K chunks, and so have gate and value. Each of the K blocks of `up` computes two of these 2 K
chunks. So chunk j of gate is half j % 2 of what block j // 2 computes, and chunk j of value is half (K + j) % 2 of what
block (K + j) // 2 computes.

A program takes some tokens and one chunk of act. It loads the two chunks of x that it needs, keeps them in shared
memory if they fit, and computes one tile of act after the other from them. So up's output of 2 I channels is never
written. act is (T, I) in memory, and its chunks, a batch of K matrices, go to cuBLAS without a copy.

Backward computes gate and value again. Forward and backward take TOKENS_AT_ONCE tokens at a time, which limits the
memory that they need besides their results.
"""

import functools

import torch
from torch import Tensor

from .m2bert_ops_triton import tl, triton

TOKENS_AT_ONCE = 8192
RESIDENT_PIECES = 4  # pieces of x, of TILE_K channels each, that fit into shared memory
RESIDENT_SHARED_BYTES = 120 << 10  # a program that keeps x there needs up to 112 KB; many GPUs allow only 99 KB
PROGRAMS = 264  # two for each of a GPU's processors; with too few tiles for that, a program takes fewer of them


@triton.jit
def _load_x(x, t, k, tokens, inner, stride_h):
    return tl.load(x + k.to(tl.int64)[None, :] * stride_h, mask=(t < tokens)[:, None] & (k < inner)[None, :], other=0.0)


@triton.jit
def _resident(x, t, tokens, inner, stride_h, TILE_K: tl.constexpr, PIECES: tl.constexpr):
    """Load x (T, inner) at the tokens t as PIECES pieces of TILE_K channels."""
    pieces = ()
    for piece in tl.static_range(PIECES):
        k = piece * TILE_K + tl.arange(0, TILE_K)
        pieces = pieces + (_load_x(x, t, k, tokens, inner, stride_h),)
    return pieces


@triton.jit
def _up(
    x, pieces, t, tokens, stride_h, up, row, mask, inner,
    TILE_T: tl.constexpr, TILE_I: tl.constexpr, TILE_K: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Return a tile of up's output in float32: the product of x and some rows of `up` (2 I, inner).

    If PIECES is 0, x is loaded here; else `pieces` hold it.
    """
    total = tl.zeros((TILE_T, TILE_I), tl.float32)
    up += row[None, :] * inner
    if PIECES:
        for piece in tl.static_range(PIECES):
            k = piece * TILE_K + tl.arange(0, TILE_K)
            w = tl.load(up + k[:, None], mask=mask[None, :] & (k < inner)[:, None], other=0.0)
            total = tl.dot(pieces[piece], w, total, input_precision="ieee")
    else:
        for k0 in range(0, inner, TILE_K):
            k = k0 + tl.arange(0, TILE_K)
            w = tl.load(up + k[:, None], mask=mask[None, :] & (k < inner)[:, None], other=0.0)
            total = tl.dot(_load_x(x, t, k, tokens, inner, stride_h), w, total, input_precision="ieee")
    return total


@triton.jit
def _normal_cdf(x):
    return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)


@triton.jit
def _dropout_scale(seed, dropout, kept_scale, t, group, groups, TILE_T: tl.constexpr, TILE_I: tl.constexpr):
    """Return the dropout factors of a tile, 0 or kept_scale. They depend only on seed and position.

    Philox makes four random numbers at a time. So four neighboring channels are a group; a token has `groups` of them,
    and `group` holds their numbers.
    """
    counter = (t.to(tl.int64)[:, None] * groups + group[None, :]).to(tl.uint32)
    r0, r1, r2, r3 = tl.randint4x(tl.load(seed), counter)
    limit = dropout * 4294967296.0
    even = tl.join((r0.to(tl.float32) > limit).to(tl.int8), (r2.to(tl.float32) > limit).to(tl.int8))
    odd = tl.join((r1.to(tl.float32) > limit).to(tl.int8), (r3.to(tl.float32) > limit).to(tl.int8))
    keep = tl.join(even, odd).reshape(TILE_T, TILE_I)
    return tl.where(keep != 0, kept_scale, 0.0)


@triton.jit
def _glu_kernel(
    x, up, act, d_up_output, seed, dropout, kept_scale, first_token,
    tokens, blocks, width, inner, steps, stride_xt, stride_xh,
    TILE_T: tl.constexpr, TILE_I: tl.constexpr, TILE_K: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Compute act (T, I), and in backward the gradient of up's output.

    In forward, d_up_output is None. In backward, act holds the gradient of act and is overwritten by act, and
    d_up_output (T, 2 I) receives [d_gate | d_value]. A program computes `steps` tiles. Programs of the same tokens are
    neighbors.
    """
    parts = tl.cdiv(tl.cdiv(width, TILE_I), steps)
    chunk = tl.program_id(0) % (blocks * parts) // parts
    first = tl.program_id(0) % parts * steps * TILE_I
    t = tl.program_id(0) // (blocks * parts) * TILE_T + tl.arange(0, TILE_T)
    channels = blocks * width

    x += t.to(tl.int64)[:, None] * stride_xt
    x_gate = x + (chunk // 2 * inner).to(tl.int64) * stride_xh
    x_value = x + ((blocks + chunk) // 2 * inner).to(tl.int64) * stride_xh
    gate_pieces = _resident(x_gate, t, tokens, inner, stride_xh, TILE_K, PIECES)
    value_pieces = _resident(x_value, t, tokens, inner, stride_xh, TILE_K, PIECES)
    for i0 in range(first, min(first + steps * TILE_I, width), TILE_I):
        i = i0 + tl.arange(0, TILE_I)
        c = chunk * width + i
        gate = _up(x_gate, gate_pieces, t, tokens, stride_xh, up, c, i < width, inner, TILE_T, TILE_I, TILE_K, PIECES)
        value = _up(
            x_value, value_pieces, t, tokens, stride_xh, up, channels + c, i < width, inner,
            TILE_T, TILE_I, TILE_K, PIECES,
        )  # fmt: skip
        mask = (t < tokens)[:, None] & (i < width)[None, :]
        at = t[:, None] * channels + c[None, :]
        scale = 1.0
        if seed is not None:
            groups = tl.cdiv(width, 4)
            group = chunk * groups + i0 // 4 + tl.arange(0, TILE_I // 4)
            scale = _dropout_scale(seed, dropout, kept_scale, first_token + t, group, blocks * groups, TILE_T, TILE_I)
        cdf = _normal_cdf(gate)
        gelu = gate * cdf
        if d_up_output is not None:
            d_act = tl.load(act + at, mask=mask, other=0.0).to(tl.float32) * scale
            tl.debug_barrier()  # every thread has read act before any overwrites it
            slope = cdf + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
            at_gate = at + t[:, None] * channels
            tl.store(d_up_output + at_gate, d_act * value * slope, mask=mask)
            tl.store(d_up_output + at_gate + channels, d_act * gelu, mask=mask)
        tl.store(act + at, gelu * value * scale, mask=mask)


def block_diagonal_glu(
    x: Tensor, up: Tensor, down: Tensor, bias: Tensor, dropout: float, seed: Tensor | None
) -> Tensor:
    """Compute the feed-forward network, (T, H) contiguous.

    Args:
        x: (T, H), any strides, float32, float16 or bfloat16. Weights are cast to its dtype; sums are float32.
        up, down, bias, dropout: as in m2bert_ops.
        seed: (1,) int64 on x's device, for the dropout; None without dropout.
    """
    blocks = up.shape[0]
    up, down, bias = (parameter.to(x.dtype).contiguous() for parameter in (up, down, bias))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    acts = _buffer(x, blocks * down.shape[2])
    for first in range(0, x.shape[0], TOKENS_AT_ONCE):
        tokens = slice(first, first + TOKENS_AT_ONCE)
        act = acts[: x[tokens].shape[0]]
        _launch(x[tokens], up, act, None, dropout, seed, first)
        matrices = _chunks(act, blocks), down.transpose(1, 2)
        torch.baddbmm(bias.view(blocks, 1, -1), *matrices, out=_chunks(y[tokens], blocks))
    return y


def block_diagonal_glu_backward(
    dy: Tensor, x: Tensor, up: Tensor, down: Tensor, dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of block_diagonal_glu, with the dropout of the forward that had the same seed.

    Args:
        dy: (T, H), any strides, in x's dtype. The others: as in the forward.

    Returns:
        dx (T, H), contiguous, in x's dtype; d_up in up's dtype, d_down and d_bias in down's dtype.
    """
    blocks = up.shape[0]
    d_up, d_down = (torch.zeros_like(weight, dtype=torch.float32) for weight in (up, down))
    up, down, dtypes = up.to(x.dtype).contiguous(), down.to(x.dtype).contiguous(), (up.dtype, down.dtype)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    channels = blocks * down.shape[2]
    acts, d_up_outputs = _buffer(x, channels), _buffer(x, 2 * channels)
    for first in range(0, x.shape[0], TOKENS_AT_ONCE):
        tokens = slice(first, first + TOKENS_AT_ONCE)
        x_chunks, dy_chunks, dx_chunks = (_chunks(stream[tokens], blocks) for stream in (x, dy, dx))
        act, d_up_output = (buffer[: x_chunks.shape[1]] for buffer in (acts, d_up_outputs))
        act_chunks, d_up_output_chunks = _chunks(act, blocks), _chunks(d_up_output, blocks)
        torch.bmm(dy_chunks, down, out=act_chunks)  # the gradient of act, which the kernel overwrites by act
        _launch(x[tokens], up, act, d_up_output, dropout, seed, first)
        torch.bmm(d_up_output_chunks, up, out=dx_chunks)
        _add_product(d_up, d_up_output_chunks.transpose(1, 2), x_chunks)
        _add_product(d_down, dy_chunks.transpose(1, 2), act_chunks)
    return dx, d_up.to(dtypes[0]), d_down.to(dtypes[1]), dy.sum(0, dtype=torch.float32).to(dtypes[1])


def _launch(
    x: Tensor, up: Tensor, act: Tensor, d_up_output: Tensor | None, dropout: float, seed: Tensor | None, first: int
):
    """Run the kernel for x (T, H), the tokens from `first` on. d_up_output is None in forward."""
    blocks, inner, width = up.shape[0], up.shape[2], act.shape[1] // up.shape[0]
    tile, options = _tile(x.element_size(), inner, d_up_output is None and seed is None, _shared_bytes(x.device))
    token_tiles, tiles = triton.cdiv(x.shape[0], tile["TILE_T"]), triton.cdiv(width, tile["TILE_I"])
    steps = max(1, min(tiles, token_tiles * blocks * tiles // PROGRAMS))
    _glu_kernel[(token_tiles * blocks * triton.cdiv(tiles, steps),)](
        x, up, act, d_up_output, seed, float(dropout), 1 / (1 - dropout), first,
        x.shape[0], blocks, width, inner, steps, *x.stride(), **tile, **options,
    )  # fmt: skip


def _tile(element_bytes: int, inner: int, plain: bool, shared_bytes: int) -> tuple[dict, dict]:
    """Return tile sizes and launch options.

    Float32 is computed without tensor cores, from registers. With x in shared memory, a processor runs two programs at
    once if each has at most 128 registers a thread. Then one computes GELUs while the other multiplies.

    Args:
        plain: whether this is a forward without dropout, which has registers left for wider tiles.
        shared_bytes: shared memory that the GPU allows one program.
    """
    if element_bytes == 4:
        return {"TILE_T": 64, "TILE_I": 64, "TILE_K": 32, "PIECES": 0}, {"num_warps": 8, "num_stages": 2}
    tile = {"TILE_T": 128, "TILE_I": 64 if plain else 32, "TILE_K": 64}
    pieces = triton.cdiv(inner, tile["TILE_K"])
    if pieces <= RESIDENT_PIECES and shared_bytes >= RESIDENT_SHARED_BYTES:
        return tile | {"PIECES": pieces}, {"num_warps": 8, "num_stages": 1, "maxnreg": 128}
    return tile | {"PIECES": 0}, {"num_warps": 8, "num_stages": 3}


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    """Return how many bytes of shared memory one program may have; without a GPU, those of a Hopper GPU."""
    if device.type != "cuda":
        return 232448
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)


def _buffer(x: Tensor, channels: int) -> Tensor:
    return torch.empty(min(x.shape[0], TOKENS_AT_ONCE), channels, dtype=x.dtype, device=x.device)


def _chunks(x: Tensor, blocks: int) -> Tensor:
    """View (T, C) as (K, T, C / K)."""
    return x.unflatten(1, (blocks, -1)).transpose(0, 1)


def _add_product(total: Tensor, a: Tensor, b: Tensor):
    """Add a @ b, batches of matrices, to total (float32). The product is not rounded to half precision."""
    if a.dtype == torch.float32:
        total.baddbmm_(a, b)
    elif a.is_cuda:
        total += torch.bmm(a, b, out_dtype=torch.float32)
    else:
        total.baddbmm_(a.float(), b.float())
