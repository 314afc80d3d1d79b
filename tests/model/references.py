"""What kernels are held to: definitions, FFTs in the same precision, and the same roundings."""

import torch
from torch.nn import functional as F

from modeling_m2bert import m2bert_ops_triton_dft as dft

NAMES = ("gated", "gate", "residual", "taps", "residual_taps", "skip", "residual_skip")


def toeplitz_convolution(x, taps):
    """(H, L) by the definition: y_t = sum_{j<=t} h_{t-j} x_j + sum_{j>t} r_{j-t-1} x_j, as a dense matrix."""
    length = x.shape[1]
    lags = torch.cat([taps[1, :, : length - 1].flip(-1), taps[0, :, :length]], 1)
    t = torch.arange(length, device=x.device)
    return torch.einsum("ctj,cj->ct", lags[:, t[:, None] - t + length - 1], x)


def fft_convolution(x, taps):
    """The same by real FFTs of twice the length, in the precision of x."""
    length = x.shape[1]
    lags = torch.cat([taps[0, :, :length], taps.new_zeros(len(x), 1), taps[1, :, : length - 1].flip(-1)], 1)
    return torch.fft.irfft(torch.fft.rfft(x, n=2 * length) * torch.fft.rfft(lags), n=2 * length)[:, :length]


def half_convolution(x, taps):
    """The same in float64 with float16 wherever the kernels round operands; taps as two-sided taps or as a spectrum."""
    m = max(dft.transform_length(x.shape[1]), dft.SHORTEST_TRANSFORM)
    m1, m2 = dft.factors(m)
    planes, scale = (part.double() for part in dft.spectrum(taps, m, torch.float16))
    table, inverse = (part.double() for part in dft.stage1_tables(m1, torch.float16, x.device))
    folded = dft.folded_tables(m1, m2, torch.float16, x.device).double()
    folded, early = torch.complex(folded[:, 0], folded[:, 1]), dft.early_part(m2)
    a = table.unsqueeze(1) @ F.pad(x.double(), (0, m - x.shape[1])).unflatten(1, (m1, m2)).half().double()
    spectrum = torch.einsum("cmn,mnk->cmk", rounded(torch.complex(*a)), folded)
    y = rounded(spectrum * torch.complex(planes[:, 0], planes[:, 1]) * early)
    b = rounded(torch.einsum("cmk,mnk->cmn", y, folded.conj()) / (m2 * early))
    return (inverse[0] @ b.real + inverse[1] @ b.imag).flatten(1)[:, : x.shape[1]] * scale[:, None]


def rounded(z):
    return torch.complex(z.real.half().double(), z.imag.half().double())


def long_conv(convolution, offsets, lengths, gated, gate, residual, taps, residual_taps, skip, residual_skip):
    """y (H, T), row by row, in the precision of its arguments; zeros in padding."""
    y = torch.zeros_like(gated)
    for start, length in zip(offsets.tolist(), lengths.tolist(), strict=False):
        if not length:
            continue
        row = slice(start, start + length)
        part = gate[:, row] * (convolution(gated[:, row], taps) + skip[:, None] * gated[:, row])
        if residual is not None:
            part = part + convolution(residual[:, row], residual_taps) + residual_skip[:, None] * residual[:, row]
        y[:, row] = part
    return y


def short_conv_gate(projected, projection_bias, weight, bias, offsets, lengths, longest=None):
    """gated and gate (H, T), row by row, in the precision of the arguments; zeros in padding."""
    gated, gate = (torch.zeros_like(projected[: len(projected) // 3]) for _ in range(2))
    for start, n in ((start, n) for start, n in zip(offsets.tolist(), lengths.tolist(), strict=False) if n):
        a = F.pad(projected[:, start : start + n] + projection_bias[:, None], (2, 0))
        x1, x2, v = F.conv1d(a[None], weight[:, None], bias, groups=len(weight))[0].chunk(3)
        gated[:, start : start + n], gate[:, start : start + n] = v * x1, x2
    return gated, gate


def glu(x, up, down, bias, mask=1.0):
    """From dense block-diagonal matrices, in the precision of the arguments; mask (T, I) scales the activations."""
    gate, value = (x @ torch.block_diag(*up).T).chunk(2, dim=-1)
    return (F.gelu(gate) * value * mask) @ torch.block_diag(*down).T + bias


class Case:
    """Random arguments of a batch, the rows' true columns, and arguments with NaN in padding for the kernels."""

    def __init__(self, lengths, slots, dtype, device, channels=2, with_residual=True, num_taps=None, seed=0):
        torch.manual_seed(seed)
        self.longest, self.columns = max(slots, default=0), sum(slots)
        num_taps = self.longest if num_taps is None else num_taps
        self.offsets = torch.tensor([0, *slots], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=device)
        t = torch.arange(self.columns, device=device)
        starts, stops = self.offsets[:-1, None], (self.offsets[:-1] + self.lengths)[:, None]
        self.real = ((t >= starts) & (t < stops)).any(0)
        gated, gate, residual = (torch.randn(channels, self.columns, device=device).to(dtype) for _ in range(3))
        decay = 0.3 * torch.exp(-3 * torch.arange(num_taps) / max(num_taps, 1))
        taps, residual_taps = ((torch.randn(2, channels, num_taps) * decay).to(device) for _ in range(2))
        skip, residual_skip = (torch.randn(channels, device=device) for _ in range(2))
        self.arguments = [gated, gate, residual, taps, residual_taps, skip, residual_skip]
        if not with_residual:
            self.arguments[2] = self.arguments[4] = self.arguments[6] = None
        self.dy = torch.randn(channels, self.columns, device=device).to(dtype)

    def poison(self, signal):
        return None if signal is None else torch.where(self.real, signal, float("nan")).to(signal.dtype)

    @property
    def rows(self):
        return self.offsets, self.lengths, self.longest

    def expected(self, convolution, dtype):
        """{"y": (H, T)} by one of the functions above, computed in dtype."""
        arguments = [None if a is None else a.to(dtype) for a in self.arguments]
        y = long_conv(convolution, self.offsets, self.lengths, *arguments)
        return {"y": y}

    def expected_gradients(self, convolution, dtype):
        """{name of an argument: its gradient}, of what is present."""
        arguments = [None if a is None else a.to(dtype).requires_grad_() for a in self.arguments]
        y = long_conv(convolution, self.offsets, self.lengths, *arguments)
        present = [(name, a) for name, a in zip(NAMES, arguments, strict=True) if a is not None]
        gradients = torch.autograd.grad(
            y, [a for _, a in present], torch.where(self.real, self.dy, 0).to(dtype), materialize_grads=True
        )
        return dict(zip([name for name, _ in present], gradients, strict=True))


def relative_error(actual, exact):
    return ((actual.double() - exact).norm() / exact.norm().clamp_min(1e-300)).item()
