"""Gradients of the long convolution. Rows of every length use the stages of m2bert_ops_triton_stages.

Each of the two filters is a convolution y = gate (k * x + skip x), the residual one without a gate. With g = dy gate:

    d_x = conj(k) * g + skip g      d_gate = dy (k * x + skip x)      d_skip = sum g x      d_K = sum conj(X) G

Each row of x and of g is multiplied by its scale, for float32 operands too, and results are divided by the scales. Sums
have a fixed order, so that results repeat exactly.
"""

import torch
from torch import Tensor

from .m2bert_ops_triton import tl, triton
from .m2bert_ops_triton_dft import SHORTEST_TRANSFORM, spectrum, taps_gradient, transform_length
from .m2bert_ops_triton_stages import Stages, row_columns, row_scales, stage2, sum_rows, tile_places


@triton.jit(do_not_specialize=["first_channel", "channels", "batch"])
def sum_spectrum_gradient(
    dk, z, folded, scales, first_channel, channels, batch, M1, M2: tl.constexpr, TC: tl.constexpr, MC: tl.constexpr,
    PIECE: tl.constexpr,
):  # fmt: skip
    """Compute dk (channels, 2, M1, M2), the sum over the batch of conj(X) G divided by the scales.

    Grid (channels / TC, M1, M2 / MC).
    """
    m1 = tl.program_id(1)
    channel = tl.program_id(0) * TC + tl.arange(0, TC)[:, None]
    m2 = tl.program_id(2) * MC + tl.arange(0, MC)
    within = channel < channels
    plane = M1 * M2
    folded += m1.to(tl.int64) * (2 * M2 * M2)
    z += (channel * batch).to(tl.int64) * (2 * plane) + m1 * M2
    scales += 2 * (first_channel + channel) * batch
    second = (channels * batch).to(tl.int64) * (2 * plane)
    real = tl.zeros([TC, MC], tl.float32)
    imaginary = tl.zeros([TC, MC], tl.float32)
    for _ in range(0, batch):
        x_real, x_imaginary = stage2(z, folded, m2, within, plane, M2, TC, MC, PIECE)
        g_real, g_imaginary = stage2(z + second, folded, m2, within, plane, M2, TC, MC, PIECE)
        undo = 1.0 / (tl.load(scales, mask=within, other=1.0) * tl.load(scales + 1, mask=within, other=1.0))
        real += (x_real * g_real + x_imaginary * g_imaginary) * undo
        imaginary += (x_real * g_imaginary - x_imaginary * g_real) * undo
        z += 2 * plane
        scales += 2
    dk += channel.to(tl.int64) * (2 * plane) + m1 * M2 + m2[None, :]
    tl.store(dk, real, mask=within)
    tl.store(dk + plane, imaginary, mask=within)


@triton.jit(
    do_not_specialize=[
        "d_gate_stride", "dx_stride", "x_stride", "dy_stride", "gate_stride", "first_channel", "rows", "batch",
        "longest",
    ]
)  # fmt: skip
def gradient_rows(
    d_gate, dx, z, table, x, dy, gate, skip, spectrum_scale, scales, offsets, lengths, d_gate_stride, dx_stride,
    x_stride, dy_stride, gate_stride, first_channel, rows, batch, longest, M1, UNIFORM: tl.constexpr,
    M2: tl.constexpr, TN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Compute the inverse of stage 1, and with it d_gate from signal 0 and dx from signal 1.

    Without a gate there is only signal 1. spectrum_scale has entries for the channels of this group only.
    Grid (rows, M1 / TN, 2 or 1).
    """
    row, tile = tl.program_id(0), tl.program_id(1)
    channel = (first_channel + row // batch).to(tl.int64)
    start, length, width = row_columns(offsets, lengths, row % batch, longest, UNIFORM)
    signal = 1
    a, b, out = dy + channel * dy_stride, None, dx + channel * dx_stride
    if gate is not None:
        signal = tl.program_id(2)
        b = gate + channel * gate_stride
        if signal == 0:
            a, b, out = x + channel * x_stride, dy + channel * dy_stride, d_gate + channel * d_gate_stride
    out += start
    if tile * TN * M2 < length:
        row_scale = tl.load(scales + 2 * (first_channel * batch + row) + signal)
        z += (signal * rows + row).to(tl.int64) * (2 * M1 * M2)
        total = sum_rows(z, table, tile, M1, M2, TN, BK) * (tl.load(spectrum_scale + row // batch) / row_scale)
        tl.debug_barrier()  # keeps the compiler from loading early, which would spill registers
        n = tile_places(lengths, length, row % batch, tile, M2, TN)
        direct = tl.load(skip + channel) * tl.load(a + start + n, mask=n < length, other=0.0).to(tl.float32)
        if gate is not None:
            factor = tl.load(b + start + n, mask=n < length, other=0.0).to(tl.float32)
            direct *= factor
            if signal == 0:
                total *= factor
        tl.store(out + n, tl.where(n < length, total + direct, 0.0).to(out.dtype.element_ty), mask=n < width)
    elif tile * TN * M2 < width:
        n = tile_places(lengths, length, row % batch, tile, M2, TN)
        tl.store(out + n, tl.zeros([TN, M2], out.dtype.element_ty), mask=n < width)


def _filter_backward(dy, x, gate, taps, skip, offsets, lengths, longest):
    """Return (d_x, d_gate or None, d_taps, d_skip) of gate (k * x + skip x); gate may be None."""
    channels, batch = x.shape[0], lengths.numel()
    stages = Stages(max(transform_length(longest), SHORTEST_TRANSFORM), x.dtype, x.device)
    uniform = x.shape[1] == batch * longest
    gate_stride = 0 if gate is None else gate.stride(0)
    products = torch.empty(channels, batch, dtype=torch.float32, device=x.device)
    scales = row_scales(x, dy, gate, offsets, lengths, longest, products)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    d_gate = None if gate is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    d_taps = torch.zeros_like(taps)
    reach = min(longest, taps.shape[2])
    group = stages.channels_at_once(channels, batch, 2, stages.rows)
    z = stages.scratch(2, group * batch, x.device)
    for first in range(0, channels, group):
        part = slice(first, min(first + group, channels))
        rows = (part.stop - first) * batch
        stages.transform(z, [x], first, rows, offsets, lengths, longest, scales=scales)
        stages.transform(z, [dy], first, rows, offsets, lengths, longest, gate, scales, first_signal=1)
        d_taps[:, part, :reach] = _taps_gradient(stages, z, scales, first, rows // batch, batch, reach)
        planes, scale = spectrum(taps[:, part], stages.m, x.dtype)
        stages.multiply(z, [planes], 0, rows, batch, (1 if gate is None else 0, 2), conjugate_second=True)
        gradient_rows[(rows, triton.cdiv(stages.m1, stages.tile), 1 if gate is None else 2)](
            d_gate, dx, z, stages.inverse, x, dy, gate, skip, scale, scales, offsets, lengths,
            0 if gate is None else d_gate.stride(0), dx.stride(0), x.stride(0), dy.stride(0), gate_stride, first, rows,
            batch, longest, stages.m1, UNIFORM=uniform, M2=stages.m2, TN=stages.tile, BK=stages.block, **stages.options,
        )  # fmt: skip
    d_taps[1, :, longest - 1 :] = 0  # no two positions are so far apart: without rounding these would be zero
    return dx, d_gate, d_taps, products.sum(1)


def _taps_gradient(stages: Stages, z, scales, first, channels, batch, reach) -> Tensor:
    """Return the gradient of the taps, (2, channels, reach), from the transforms of x and g in Z; Z stays unchanged."""
    dk = torch.empty(channels, 2, stages.m1, stages.m2, dtype=torch.float32, device=z.device)
    sum_spectrum_gradient[(triton.cdiv(channels, stages.rows), stages.m1, stages.m2 // stages.columns)](
        dk, z, stages.folded, scales, first, channels, batch, stages.m1, M2=stages.m2, TC=stages.rows,
        MC=stages.columns, PIECE=stages.piece, **stages.stage2_options,
    )  # fmt: skip
    return taps_gradient(dk, stages.m, reach) * stages.m1  # both transforms carry 1/sqrt(M1)


def long_conv_backward(
    dy, gated, gate, residual, taps, residual_taps, skip, residual_skip, offsets, lengths, longest
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None, Tensor, Tensor | None]:
    """Return the gradients of long_conv; intermediate results are computed again.

    Args:
        dy: (H, T), any stride between channels. The others: as in the forward, with taps instead of filters.

    Returns:
        The gradients of gated, gate and residual, (H, T) in the inputs' dtype, zero in padding; then those of taps and
        residual_taps, (2, H, P), and of skip and residual_skip, (H,), in float32. Without a residual, its three
        gradients are None.
    """
    row_arguments = offsets, lengths, longest
    if not gated.numel():
        inputs = gated, gate, residual, taps, residual_taps, skip, residual_skip
        return tuple(None if tensor is None else torch.zeros_like(tensor) for tensor in inputs)
    d_gated, d_gate, d_taps, d_skip = _filter_backward(dy, gated, gate, taps, skip, *row_arguments)
    if residual is None:
        return d_gated, d_gate, None, d_taps, None, d_skip, None
    d_residual, _, d_residual_taps, d_residual_skip = _filter_backward(
        dy, residual, None, residual_taps, residual_skip, *row_arguments
    )
    return d_gated, d_gate, d_residual, d_taps, d_residual_taps, d_skip, d_residual_skip
