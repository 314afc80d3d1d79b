"""The operations of M2-BERT, on kernels of plain PyTorch or of Triton. The model calls kernels only through this file.

An operation chooses its kernels when it runs. Its argument `kernels` decides, else the environment variable
M2BERT_KERNELS (`torch`, `triton` or `auto`). Without these, or with `auto`, it takes Triton on NVIDIA GPUs where Triton
can launch a kernel, and PyTorch everywhere else and for float64. Both compute the same function. On Triton the long
convolution multiplies 16-bit activations as float16, each row scaled by a power of two. So the size of a row's values
matters neither for range nor for precision.

Each operation is a torch.library operator with a fake kernel and a backward operator, so that it works under autograd,
torch.compile, gradient checkpointing and CUDA graphs. Backward recomputes intermediate results from the inputs. There
are no second derivatives, and torch.func does not support the operations.

Rows are the texts of a batch. They lie side by side in T columns, without padding: row b has the columns offsets[b] ..
offsets[b + 1] (int32, (B + 1,)), of which the first lengths[b] (int32, (B,)) are real. Where shapes have to be static,
a row may have more columns than tokens. These additional columns are padding: they are never read, and zeros are
written to them. No row has more than `longest` columns.
"""

import itertools

import torch
from torch import Tensor

from .m2bert_ops_filter import FilterParameters
from .m2bert_ops_registry import operators


def long_conv(
    gated: Tensor,
    gate: Tensor,
    residual: Tensor | None,
    taps: Tensor,
    residual_taps: Tensor | None,
    skip: Tensor,
    residual_skip: Tensor | None,
    offsets: Tensor,
    lengths: Tensor,
    longest: int,
    kernels: str | None = None,
) -> Tensor:
    """Compute the gated long convolution of x and the residual long convolution of u, and add them (paper section 3).

        y_t = gate_t * conv(x)_t + conv(u)_t
        conv(x)_t = sum_{j<=t} h_{t-j} x_j + sum_{j>t} r_{j-t-1} x_j + d x_t

    The two convolutions have filters h, r and skip terms d of their own.

    Args:
        gated, gate, residual: (H, T), x, gate and u, of one dtype. residual None: only the convolution of x.
        taps, residual_taps: (2, H, P), P >= longest, float32 or float64: h (lags 0, 1, ..) and r (lags -1, -2, ..).
        skip, residual_skip: (H,), d.
        offsets, lengths, longest: rows, as the module describes them.

    Returns:
        (H, T) in gated's dtype, zero in padding.

    Raises:
        ValueError: shapes do not fit; rows do not fit the columns (checked on CPU only); the kernels are unknown or not
            available.
    """
    _check_rows(gated.shape[1], offsets, lengths, longest)
    _check_convolution(gated, (gate, taps, skip), (residual, residual_taps, residual_skip), longest)
    signals = _columns(gated), _columns(gate), _columns(residual)
    rows = offsets, lengths, longest
    return operators.long_conv(*signals, taps, residual_taps, skip, residual_skip, *rows, kernels or "")


def cached_long_conv(
    gated: Tensor,
    gate: Tensor,
    residual: Tensor | None,
    parameters: FilterParameters,
    residual_parameters: FilterParameters | None,
    skip: Tensor,
    residual_skip: Tensor | None,
    offsets: Tensor,
    lengths: Tensor,
    longest: int,
    cache: tuple[int, int],
    kernels: str | None = None,
) -> Tensor:
    """Compute long_conv without gradients. The filters are generated from their parameters and cached.

    Args:
        parameters, residual_parameters: of the two filters, with P >= longest positions.
        cache: handle and number of layers of a FilterCache.
        gated, gate, residual, skip, residual_skip, offsets, lengths, longest, kernels: as for long_conv.
    """
    _check_rows(gated.shape[1], offsets, lengths, longest)
    _check_convolution(gated, (gate, parameters, skip), (residual, residual_parameters, residual_skip), longest)
    signals = _columns(gated), _columns(gate), _columns(residual)
    sources = list(parameters), list(residual_parameters or ())
    rows = offsets, lengths, longest
    return operators.cached_long_conv(*signals, *sources, skip, residual_skip, *rows, cache, kernels or "")


def short_conv_gate(
    projected: Tensor,
    projection_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    longest: int,
    kernels: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the depthwise causal convolution with three taps, split into [x1 | x2 | v], and the first gate.

        s_t = b + w_0 a_{t-2} + w_1 a_{t-1} + w_2 a_t,  a_t = projected_t + projection_bias, zero before the row's start

    Args:
        projected: (3H, T), the projection's output without its bias. projection_bias: (3H,), this bias.
        weight: (3H, 3). bias: (3H,).
        offsets, lengths, longest: rows, as the module describes them.

    Returns:
        v * x1 and x2, the inputs `gated` and `gate` of long_conv, both (H, T) in projected's dtype, zero in padding.
    """
    _check_rows(projected.shape[1], offsets, lengths, longest)
    channels = len(projected)
    if channels % 3 or (projection_bias.shape, weight.shape, bias.shape) != ((channels,), (channels, 3), (channels,)):
        shapes = {"projected": projected, "projection_bias": projection_bias, "weight": weight, "bias": bias}
        raise _misfit("(3H, T), (3H,), (3H, 3) and (3H,)", **shapes)
    projected = _columns(projected)
    return operators.short_conv_gate(projected, projection_bias, weight, bias, offsets, lengths, longest, kernels or "")


def block_diagonal_glu(
    x: Tensor, up: Tensor, down: Tensor, bias: Tensor, dropout: float = 0.0, kernels: str | None = None
) -> Tensor:
    """Compute the gated feed-forward network of block-diagonal (Monarch) matrices.

        y = down(gelu(gate) * value),  [gate | value] = up(x)

    The intermediate activations, 2 I wide, are not kept for backward. Under autocast, autocast's dtype is used.

    Args:
        x: (T, H).
        up: (K, 2I / K, H / K), K blocks; output chunk j = up_j input chunk j.
        down: (K, H / K, I / K).
        bias: (H,), of down.
        dropout: probability of zeroing an element of gelu(gate) * value. The generator of x's device draws.

    Returns:
        (T, H).
    """
    blocks, width = len(up), x.shape[1] // len(up)
    expected = (blocks, 2 * down.shape[2], width), (blocks, width, down.shape[2]), (x.shape[1],)
    if blocks * width != x.shape[1] or (up.shape, down.shape, bias.shape) != expected:
        expected = "(T, H), (K, 2I / K, H / K), (K, H / K, I / K) and (H,)"
        raise _misfit(expected, x=x, up=up, down=down, bias=bias)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} must be a probability below 1")
    dtype = x.dtype
    if dtype != torch.float64 and x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    x, up, down, bias = (tensor.to(dtype) for tensor in (x, up, down, bias))
    seed = torch.randint(2**62, (1,), device=x.device) if dropout else None
    return operators.block_diagonal_glu(x, up, down, bias, dropout, seed, kernels or "")


def add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float, kernels: str | None = None
) -> Tensor:
    """Return LayerNorm(x + y) over the last dimension, in float32 at least.

    Args:
        x, y: (T, H). weight, bias: (H,).

    Returns:
        (T, H) in x's dtype, a transposed view of a contiguous (H, T), as the next mixer reads it.
    """
    if x.shape != y.shape or (weight.shape, bias.shape) != (x.shape[1:],) * 2:
        raise _misfit("(T, H), (T, H), (H,) and (H,)", x=x, y=y, weight=weight, bias=bias)
    return operators.add_layer_norm(x, y.to(x.dtype), weight, bias, eps, kernels or "").T


def _columns(x: Tensor | None) -> Tensor | None:
    """Return x with the columns of a channel adjacent in memory, as the kernels read them."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _misfit(expected: str, **tensors: Tensor) -> ValueError:
    found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    return ValueError(f"{found} do not fit: expected {expected}")


def _check_rows(columns: int, offsets: Tensor, lengths: Tensor, longest: int):
    if offsets.dim() != 1 or lengths.shape != (offsets.shape[0] - 1,):
        raise _misfit("(B + 1,) and (B,)", offsets=offsets, lengths=lengths)
    if torch.compiler.is_compiling() or offsets.device.type != "cpu" or lengths.shape == (0,):
        return
    edges, sizes = offsets.tolist(), lengths.tolist()
    slots = [end - start for start, end in itertools.pairwise(edges)]
    fits = all(0 <= size <= slot <= longest for size, slot in zip(sizes, slots, strict=True))
    if not fits or (edges[0], edges[-1]) != (0, columns):
        raise ValueError(
            f"offsets={edges} must rise from 0 to the {columns} columns, in steps of at most longest={longest}, and "
            f"lengths={sizes} lie between 0 and these steps"
        )


def _check_convolution(gated: Tensor, gate_parts: tuple, residual_parts: tuple, longest: int):
    """Raise ValueError unless all inputs of long_conv fit gated (H, T).

    Args:
        gate_parts: gate, filter, skip term.
        residual_parts: residual signal, filter, skip term; or None for all three.
    """

    def shape(x: Tensor | FilterParameters | None) -> tuple[int, ...] | None:
        if isinstance(x, FilterParameters):
            return 2, len(x.decay), len(x.time)
        return None if x is None else tuple(x.shape)

    checked = [("gate", gate_parts)]
    if any(part is not None for part in residual_parts):
        checked.append(("residual", residual_parts))
    for name, (signal, *rest) in checked:
        taps, skip = map(shape, rest)
        fits = shape(signal) == shape(gated) and signal.dtype == gated.dtype and skip == (len(gated),)
        if not fits or taps is None or taps[:2] != (2, *skip) or taps[2] < longest:
            raise ValueError(
                f"{name} {shape(signal)}, its filter {taps} and skip term {skip} do not fit gated {shape(gated)}: "
                f"expected (H, T) in {gated.dtype}, (2, H, P) with P >= longest={longest}, and (H,)"
            )
