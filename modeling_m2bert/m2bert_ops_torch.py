"""The operations of M2-BERT in plain PyTorch, except the long convolution (m2bert_ops_torch_conv).

A CPU computes with them, and the tests compare the Triton kernels with them. Each works on pieces that fit into the
processor's cache. Backward recomputes intermediate results. m2bert_ops has the formulas and shapes, and describes rows.
"""

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from .m2bert_ops_product import add_product, by_onednn, fast_dtype, product

CHUNK_TOKENS = 512
NORM_TOKENS = 256
GROUP_ELEMENTS = 2**18

Row = tuple[int, int, int]  # as row_columns returns it


def row_columns(offsets: Tensor, lengths: Tensor) -> list[Row]:
    """Return (first column, end of the real columns, end of all columns) of every row that has columns."""
    slots = itertools.pairwise(offsets.tolist())
    return [(start, start + n, end) for (start, end), n in zip(slots, lengths.tolist(), strict=True) if end > start]


def short_conv_gate(projected, projection_bias, weight, bias, offsets, lengths, longest) -> tuple[Tensor, Tensor]:
    """Compute the short convolution and the first gate, in float32 at least."""
    hidden = len(projected) // 3
    gated = torch.empty_like(projected[:hidden], memory_format=torch.contiguous_format)
    gate = torch.empty_like(gated)
    rows = row_columns(offsets, lengths)
    starts, _ = _inner_edges(rows, projected)
    for parts in _channel_groups(projected):
        x1, x2, v = (
            _short_conv(_biased(projected[part], projection_bias[part], weight), weight[part], bias[part], starts)
            for part in parts
        )
        gated[parts[0]] = x1.mul_(v)
        gate[parts[0]] = x2
    _zero_padding(rows, gated, gate)
    return gated, gate


def short_conv_gate_backward(
    d_gated, d_gate, projected, projection_bias, weight, bias, offsets, lengths, longest
) -> tuple[Tensor, ...]:
    """Return the gradients of short_conv_gate with respect to projected, projection_bias, weight and bias."""
    d_projected = torch.empty_like(projected, memory_format=torch.contiguous_format)
    d_projection_bias, d_weight, d_bias = (
        torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (projection_bias, weight, bias)
    )
    rows = row_columns(offsets, lengths)
    starts, ends = _inner_edges(rows, projected)
    padded = any(stop < slot_end for _, stop, slot_end in rows)
    for parts in _channel_groups(projected):
        inputs = [_biased(projected[part], projection_bias[part], weight) for part in parts]
        upstream, d_x2 = (x[parts[0]].to(inputs[0].dtype, copy=padded) for x in (d_gated, d_gate))
        _zero_padding(rows, *inputs, upstream, d_x2)
        d_x1 = _short_conv(inputs[2], weight[parts[2]], bias[parts[2]], starts).mul_(upstream)
        d_v = _short_conv(inputs[0], weight[parts[0]], bias[parts[0]], starts).mul_(upstream)
        for part, a, gradient in zip(parts, inputs, (d_x1, d_x2, d_v), strict=True):
            products = gradient * a
            d_weight[part, 2] += products.sum(1)
            for lag in range(1, min(3, a.shape[1])):
                torch.mul(gradient[:, lag:], a[:, :-lag], out=products[:, lag:])
                for columns in starts[:lag]:  # there the lagged column is of another row
                    products.index_fill_(1, columns, 0)
                d_weight[part, 2 - lag] += products[:, lag:].sum(1)
            d_a = _add_lags(
                torch.mul(gradient, weight[part, 2:], out=products), gradient, weight[part], ends, ahead=True
            )
            _zero_padding(rows, d_a)
            d_projected[part] = d_a
            d_projection_bias[part] += d_a.sum(1)
            d_bias[part] += gradient.sum(1)
    return d_projected, d_projection_bias, d_weight, d_bias


def _biased(projected: Tensor, projection_bias: Tensor, weight: Tensor) -> Tensor:
    """Return projected (G, T) plus its bias, in float32 at least."""
    return projected.to(_wide(projected, weight)) + projection_bias[:, None]


def _inner_edges(rows: list[Row], x: Tensor) -> list[tuple[Tensor, ...]]:
    """Return where rows begin and end within x (C, T), but for a beginning and an end of x itself: the first and the
    second columns of rows, and their last and last but one columns."""
    begin = [(start, start + 1, stop) for start, stop, _ in rows if 0 < start < stop]
    end = [(stop - 1, stop - 2, start - 1) for start, stop, _ in rows if start < stop < x.shape[1]]
    found = []
    for edges in (begin, end):
        columns = [outer for outer, *_ in edges], [inner for _, inner, beyond in edges if inner != beyond]
        found.append(tuple(torch.tensor(each, dtype=torch.long, device=x.device) for each in columns if each))
    return found


def _zero_padding(rows: list[Row], *tensors: Tensor):
    for _, stop, slot_end in rows:
        if stop < slot_end:
            for x in tensors:
                x[:, stop:slot_end] = 0


def _short_conv(a: Tensor, taps: Tensor, bias: Tensor, starts: tuple[Tensor, ...]) -> Tensor:
    """Convolve a (G, T). Each step has one factor or summand that is the same in a row: with two, as addcmul would have
    with the bias, torch is several times slower."""
    return _add_lags((a * taps[:, 2:].to(a.dtype)).add_(bias[:, None]), a, taps, starts)


def _add_lags(y: Tensor, a: Tensor, taps: Tensor, edges: tuple[Tensor, ...], ahead: bool = False) -> Tensor:
    """Add to y what the columns of a one and two before, or ahead, contribute. All is computed as if it were one row,
    but for the columns at its `edges`, first and second, which would read another row."""
    taps = taps.to(a.dtype)
    kept = [y[:, columns] for columns in edges]
    for lag in range(1, min(3, a.shape[1])):
        tap = taps[:, 2 - lag, None]
        if ahead:
            y[:, :-lag].addcmul_(a[:, lag:], tap)
        else:
            y[:, lag:].addcmul_(a[:, :-lag], tap)
    if len(edges) == 2:
        kept[1].addcmul_(a[:, edges[1] + (1 if ahead else -1)], taps[:, 1:2])
    for columns, values in zip(edges, kept, strict=True):
        y[:, columns] = values
    return y


def block_diagonal_glu(
    x: Tensor, up: Tensor, down: Tensor, bias: Tensor, dropout: float, seed: Tensor | None
) -> Tensor:
    """Compute the feed-forward network. seed: (1,) int64 on x's device, for the dropout; None without dropout."""
    y, dtype = new_columns(x), fast_dtype(x.dtype, x.device)
    up, down, bias = (weight.to(dtype) for weight in (up, down, bias))
    width = down.shape[1]
    for tokens in _token_chunks(x):
        chunk = x[tokens].to(dtype)
        keep = _dropout_mask(chunk, down, dropout, seed, tokens.start)
        if not by_onednn(chunk, up[0]):
            y.T[:, tokens] = _glu_of_channels(chunk.T, up, down, bias, keep)
            continue
        for j in range(len(down)):
            columns = slice(j * width, (j + 1) * width)
            (gate_weight, gate_part), (value_weight, value_part) = _up_parts(up, j, len(down))
            products = product(chunk[:, gate_part], gate_weight, gelu=True)
            products.mul_(product(chunk[:, value_part], value_weight))
            if keep is not None:
                products.mul_(keep[j])
            y.T[columns, tokens] = product(products, down[j], bias[columns]).T.contiguous()
    return y


def new_columns(x: Tensor) -> Tensor:
    """Return new memory of the shape (T, H) and the dtype of x in which the samples of a channel are adjacent, as
    add_layer_norm reads it."""
    return x.new_empty(x.shape[1], x.shape[0]).T


def _glu_of_channels(x: Tensor, up: Tensor, down: Tensor, bias: Tensor, keep: Tensor | None) -> Tensor:
    """Map (H, T) -> (H, T) by one product for all blocks of a layer.

    In half precision this is faster than a product for each block, most of all where tokens are few.
    """
    gate, value = torch.bmm(up, x.unflatten(0, (len(up), -1))).view(2, len(down), down.shape[2], -1).unbind(0)
    products = torch.ops.aten.gelu_(gate).mul_(value)
    if keep is not None:
        products.mul_(keep.mT)
    return torch.baddbmm(bias.view(len(down), -1, 1), down, products).flatten(0, 1)


def block_diagonal_glu_backward(
    dy: Tensor, x: Tensor, up: Tensor, down: Tensor, dropout: float, seed: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the gradients of block_diagonal_glu with respect to x, up, down and bias. Those of up and down are float32
    at least."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    d_up, d_down = (torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in (up, down))
    width, dtype = down.shape[1], fast_dtype(x.dtype, x.device)
    up, down = up.to(dtype), down.to(dtype)
    for tokens in _token_chunks(x):
        chunk = x[tokens].to(dtype)
        keep = _dropout_mask(chunk, down, dropout, seed, tokens.start)
        d_chunk = torch.zeros_like(chunk, memory_format=torch.contiguous_format)
        for j in range(len(down)):
            parts = _up_parts(up, j, len(down))
            gate, value = (product(chunk[:, part], weight) for weight, part in parts)
            activated = F.gelu(gate)
            upstream = dy[tokens, j * width : (j + 1) * width].to(dtype)
            products = activated * value
            d_product = product(upstream, down[j].T)
            if keep is not None:
                products, d_product = products * keep[j], d_product * keep[j]
            add_product(d_down[j], upstream.T, products.T)
            d_gate = torch.ops.aten.gelu_backward(d_product * value, gate)
            d_parts = _up_parts(d_up, j, len(down))
            gradients = (d_gate, d_product.mul_(activated))
            for (weight, part), (d_weight, _), gradient in zip(parts, d_parts, gradients, strict=True):
                add_product(d_weight, gradient.T, chunk[:, part].T)
                add_product(d_chunk[:, part], gradient, weight.T)
        dx[tokens] = d_chunk
    return dx, d_up, d_down, dy.sum(0, dtype=torch.promote_types(dy.dtype, torch.float32)).to(dy.dtype)


def _up_parts(up: Tensor, j: int, blocks: int) -> list[tuple[Tensor, slice]]:
    """Return, for chunk j of gate and for that of value, the rows of `up` (I / K, H / K) and the columns of x.

    The chunk is the product of the two. Each block of `up` computes two of the 2 K chunks of [gate | value].
    """
    half, width = up.shape[1] // 2, up.shape[2]
    parts = []
    for chunk in (j, blocks + j):
        block, part = divmod(chunk, 2)
        parts.append((up[block].unflatten(0, (2, half))[part], slice(block * width, (block + 1) * width)))
    return parts


def _dropout_mask(x: Tensor, down: Tensor, dropout: float, seed: Tensor | None, start: int) -> Tensor | None:
    """Return (K, T, I / K): 0 where dropped, 1 / (1 - dropout) elsewhere. Equal seeds and `start` give equal masks."""
    if not dropout:
        return None
    generator = torch.Generator(x.device).manual_seed(int(seed) + start)
    shape = len(down), len(x), down.shape[2]
    keep = torch.rand(shape, dtype=torch.float32, device=x.device, generator=generator) >= dropout
    return keep.to(x.dtype).div_(1 - dropout)


def add_layer_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return LayerNorm(x + y) in x's dtype, a transposed view of a contiguous (H, T)."""
    z, dtype = x.new_empty(x.shape[1], x.shape[0]), _wide(x, weight)
    weight, bias = weight.to(dtype)[:, None], bias.to(dtype)[:, None]
    for tokens in _token_chunks(x, NORM_TOKENS):
        first, second = (part[tokens].to(dtype).T for part in (x, y))  # (H, t)
        if first.stride(1) == 1:
            total = first + second
        else:  # torch transposes fast in a copy only
            total = first.clone(memory_format=torch.contiguous_format).add_(second)
        total -= total.mean(0)
        scale = total.square().mean(0).add_(eps).rsqrt_()
        z[:, tokens] = total.mul_(scale).mul_(weight).add_(bias)
    return z.T


def add_layer_norm_backward(
    dz: Tensor, x: Tensor, y: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of add_layer_norm with respect to x (that of y is the same), weight and bias."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dtype = _wide(x, weight)
    d_weight, d_bias = torch.zeros_like(weight, dtype=dtype), torch.zeros_like(weight, dtype=dtype)
    for tokens in _token_chunks(x):
        total, upstream = (x[tokens].to(dtype) + y[tokens]).contiguous(), dz[tokens].to(dtype).contiguous()
        _, mean, rstd = torch.native_layer_norm(total, weight.shape, None, None, eps)
        d_total, d_weight_part, d_bias_part = torch.ops.aten.native_layer_norm_backward(
            upstream, total, weight.shape, mean, rstd, weight.to(dtype), weight.to(dtype), [True, True, True]
        )
        dx[tokens] = d_total
        d_weight += d_weight_part
        d_bias += d_bias_part
    return dx, d_weight, d_bias


def _wide(x: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)


def _token_chunks(x: Tensor, size: int = CHUNK_TOKENS) -> list[slice]:
    size = size if x.device.type == "cpu" else 16 * CHUNK_TOKENS
    return [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]


def _channel_groups(projected: Tensor):
    """Yield triples of slices of the 3H channels: x1, x2 and v of the same group of channels."""
    hidden, columns = len(projected) // 3, projected.shape[1]
    size = max(1, GROUP_ELEMENTS // max(1, columns)) if projected.device.type == "cpu" else max(1, hidden)
    for start in range(0, hidden, size):
        yield tuple(slice(part * hidden + start, part * hidden + min(start + size, hidden)) for part in range(3))
