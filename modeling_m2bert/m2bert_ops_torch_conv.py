"""The long convolution in plain PyTorch. A CPU computes with it, and the tests compare the Triton kernels with it.

It uses real FFTs in float32 (float64 for float64 input). A group of channels is transformed at a time, small enough for
the processor's cache: a transform of all channels at once spends most of its time in page faults. Every row is
transformed at a length of its own, so that neither its cost nor its result depends on the other rows of the batch.

The transform length M is at least the length of the row. The real FFTs have length N = 2M, which has room for all lags
below M in both directions. H is the number of channels, G that of a group. m2bert_ops describes rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .m2bert_ops_torch import Row, row_columns

HALF_PRECISION_BEYOND = 8192  # above this M, spectra are stored in float16 if the activations are half precision


def transform_length(longest: int) -> int:
    """Return the smallest M >= longest of the form 2^k * {1, 1.25, 1.5}. Few M are possible, since the filter cache has
    an entry for each."""
    power = 1 << max(longest - 1, 0).bit_length()
    return min(m for m in (power, power // 8 * 5, power // 4 * 3) if m >= max(longest, 1))


def prepare_filter(taps: Tensor, m: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the spectrum of a two-sided filter.

    It is the real DFT of length N = 2M of [h_0 .. h_{P-1}, 0 .., r_{P-1} .. r_0].

    Args:
        taps: (2, H, P): h for lags 0, 1, .., and r for lags -1, -2, ... Only the first M of each are used.
        m: transform length M.
        dtype: of the activations.

    Returns:
        One tensor, the spectrum (H, M + 1) complex. For half-precision activations and long transforms there are two:
        the spectrum's real view (H, M + 1, 2) in float16, and the scale (H, 1) by which it is divided.
    """
    n, taps = 2 * m, taps[..., :m]
    channels, reach = taps.shape[1:]
    half = dtype in (torch.float16, torch.bfloat16) and m > HALF_PRECISION_BEYOND
    shape = (channels, m + 1)
    spectrum = (
        taps.new_empty(*shape, 2, dtype=torch.float16) if half else taps.new_empty(shape, dtype=taps.dtype.to_complex())
    )
    scale = taps.new_empty(channels, 1)
    for group in _channel_groups(taps[0], n):
        two_sided = taps.new_zeros(group.stop - group.start, n)
        two_sided[:, :reach] = taps[0, group]
        two_sided[:, n - reach :] = taps[1, group].flip(-1)
        transformed = torch.fft.rfft(two_sided)
        if half:
            parts = torch.view_as_real(transformed)
            scale[group] = parts.abs().amax((1, 2)).clamp(min=torch.finfo(taps.dtype).tiny)[:, None]
            spectrum[group] = parts.div_(scale[group, None])
        else:
            spectrum[group] = transformed
    return (spectrum, scale) if half else (spectrum,)


def long_conv(gated, gate, residual, filters, skip, residual_skip, offsets, lengths, longest) -> Tensor:
    """Compute m2bert_ops.long_conv.

    Args:
        filters: function of a transform length that returns the prepared filter, and the prepared residual filter or
            None.
    """
    y = torch.empty_like(gated, memory_format=torch.contiguous_format)
    dtype = torch.promote_types(torch.promote_types(gated.dtype, skip.dtype), torch.float32)
    for m, rows in _rows_by_transform_length(offsets, lengths):
        prepared, residual_prepared = filters(m)
        for group in _channel_groups(gated, len(rows) * 2 * m):
            signal = _gather(gated[group], rows, 2 * m, dtype)
            product = torch.fft.rfft(signal).mul_(_spectrum(prepared, group))
            mixed = _inverse_with_skip(product, signal, group, skip)
            mixed.mul_(_gather(gate[group], rows, m, dtype))
            if residual is not None:
                signal = _gather(residual[group], rows, 2 * m, dtype)
                product = torch.fft.rfft(signal).mul_(_spectrum(residual_prepared, group))
                mixed.add_(_inverse_with_skip(product, signal, group, residual_skip))
            _scatter(mixed, y[group], rows)
    return y


def long_conv_backward(
    dy, gated, gate, residual, taps, residual_taps, skip, residual_skip, offsets, lengths, longest
) -> tuple[Tensor | None, ...]:
    """Return the gradients of long_conv with respect to its first seven inputs; those of absent inputs are None.

    All that backward needs is recomputed from the inputs. taps: (2, H, P).
    """
    d_gated, d_gate = torch.empty_like(dy), torch.empty_like(dy)
    d_taps, d_skip = torch.zeros_like(taps), torch.zeros_like(skip)
    d_residual = d_residual_taps = d_residual_skip = None
    if residual is not None:
        d_residual = torch.empty_like(dy)
        d_residual_taps, d_residual_skip = torch.zeros_like(residual_taps), torch.zeros_like(residual_skip)
    dtype = torch.promote_types(torch.promote_types(gated.dtype, skip.dtype), torch.float32)
    for m, rows in _rows_by_transform_length(offsets, lengths):
        n = 2 * m
        prepared = prepare_filter(taps, m, taps.dtype)
        residual_prepared = None if residual is None else prepare_filter(residual_taps, m, taps.dtype)
        for group in _channel_groups(gated, len(rows) * n):
            signal = _gather(gated[group], rows, n, dtype)
            transformed = torch.fft.rfft(signal)
            mixed = _inverse_with_skip(transformed * _spectrum(prepared, group), signal, group, skip)
            upstream = _gather(dy[group], rows, n, dtype)
            _scatter(mixed * upstream[..., :m], d_gate[group], rows)
            _convolve_backward(upstream * _gather(gate[group], rows, n, dtype), signal, transformed, prepared, group,
                               skip, rows, d_gated, d_taps, d_skip)  # fmt: skip
            if residual is not None:
                signal = _gather(residual[group], rows, n, dtype)
                _convolve_backward(upstream, signal, torch.fft.rfft(signal), residual_prepared, group,
                                   residual_skip, rows, d_residual, d_residual_taps, d_residual_skip)  # fmt: skip
    return d_gated, d_gate, d_residual, d_taps, d_residual_taps, d_skip, d_residual_skip


def _inverse_with_skip(product: Tensor, signal: Tensor, group: slice, skip: Tensor) -> Tensor:
    """Return the convolution plus skip term (G, rows, M), from the product of spectra and the signal (G, rows, 2M)."""
    n = signal.shape[-1]
    y = torch.fft.irfft(product, n=n)[..., : n // 2]
    return y.addcmul_(signal[..., : n // 2], skip[group, None, None].to(y.dtype))


def _convolve_backward(upstream, signal, transformed, prepared, group, skip, rows, d_signal, d_taps, d_skip):
    """Write the gradient of one group of channels into d_signal, and add those of the filter to d_taps and d_skip.

    Conjugates are computed with conj_physical, since operators inside torch.compile would ignore lazy ones.
    """
    n = signal.shape[-1]
    gradient = torch.fft.rfft(upstream)
    d_padded = torch.fft.irfft(gradient * torch.conj_physical(_spectrum(prepared, group)), n=n)
    _scatter(d_padded.addcmul_(upstream, skip[group, None, None].to(d_padded.dtype)), d_signal[group], rows)
    correlation = (torch.conj_physical(transformed) * gradient).sum(1)
    lags = torch.fft.irfft(correlation, n=n)  # (G, N)
    reach = min(d_taps.shape[-1], n // 2)
    d_taps[0, group, :reach] += lags[:, :reach]
    d_taps[1, group, :reach] += lags[:, n - reach :].flip(-1)
    d_skip[group] += (upstream * signal).sum((1, 2))


def _spectrum(prepared: tuple[Tensor, ...], group: slice) -> Tensor:
    """Return the spectrum of a group of channels, (G, 1, M + 1) complex."""
    if len(prepared) == 1:
        return prepared[0][group, None]
    spectrum, scale = prepared
    return torch.view_as_complex(spectrum[group].to(scale.dtype).mul_(scale[group, None]))[:, None]


def _rows_by_transform_length(offsets: Tensor, lengths: Tensor) -> Iterator[tuple[int, list[Row]]]:
    groups: dict[int, list[Row]] = {}
    for start, stop, slot_end in row_columns(offsets, lengths):
        groups.setdefault(transform_length(stop - start), []).append((start, stop, slot_end))
    yield from groups.items()


def _channel_groups(x: Tensor, elements_per_channel: int) -> Iterator[slice]:
    """Yield slices of the channels of x (H, T)."""
    size = max(1, _group_elements(elements_per_channel, x.device.type) // max(1, elements_per_channel))
    for start in range(0, len(x), size):
        yield slice(start, min(start + size, len(x)))


def _group_elements(elements_per_channel: int, device_type: str) -> int:
    """Return how many values a group of channels has.

    On a CPU it has 0.5 to 2 MB of float32, but at least 16 channels: the FFT library makes a plan in every call, and
    plans of long transforms take long.
    """
    if device_type != "cpu":
        return 2**27
    return max(2**17, min(64 * elements_per_channel, 2**19), 16 * elements_per_channel)


def _gather(x: Tensor, rows: list[Row], width: int, dtype: torch.dtype) -> Tensor:
    """Return the rows of x (G, T), padded with zeros to `width`: (G, rows, width)."""
    gathered = x.new_empty(len(x), len(rows), width, dtype=dtype)
    for i, (start, stop, _) in enumerate(rows):
        gathered[:, i, : stop - start] = x[:, start:stop]
        gathered[:, i, stop - start :] = 0
    return gathered


def _scatter(values: Tensor, x: Tensor, rows: list[Row]):
    """Write values (G, rows, >= length) into the rows of x (G, T), and zeros into their padding."""
    for i, (start, stop, slot_end) in enumerate(rows):
        x[:, start:stop] = values[:, i, : stop - start]
        x[:, stop:slot_end] = 0
