"""Products with a matrix of weights, by the fastest way that a CPU has.

In float32 that is oneDNN where the processor has AVX-512 and is not Intel's. There torch multiplies by MKL, which uses
AVX-512 on Intel's processors only. One thread of a Zen 5 multiplies more than twice as fast by oneDNN, one of a Xeon
1.15 times slower. Without AVX-512, as on a Zen 3, MKL is as fast or faster, most of all for transposed matrices (1.7
times). But oneDNN is faster where the second matrix is small (1.4 times for 32 tokens). It sums in longer chains, so
that the rounding error of a sum of 768 products is 1.5 times that of MKL.

In half precision that is float32 where the processor has no instructions for such products, as without AVX-512. There
torch's own loops are up to tens of times slower.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

FEWEST_COLUMNS = 16


def _slow_dtypes() -> tuple[torch.dtype, ...]:
    """Return the dtypes for whose products this processor has no instructions, as far as torch tells."""
    known = {"_is_mkldnn_bf16_supported": torch.bfloat16, "_is_mkldnn_fp16_supported": torch.float16}
    asked = [name for name in known if hasattr(torch.ops.mkldnn, name)]
    return tuple(known[name] for name in asked if not getattr(torch.ops.mkldnn, name)())


SLOW_DTYPES = _slow_dtypes()


def fast_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which products of tensors of this dtype are computed. Exported projections keep their own."""
    slow = device.type == "cpu" and dtype in SLOW_DTYPES and not torch.compiler.is_exporting()
    return torch.float32 if slow else dtype


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Return x @ weight.T + bias, or its GELU: (M, K), (N, K), (N,) -> (M, N). There are no derivatives."""
    if not by_onednn(x, weight):
        y = F.linear(x, weight, bias)
        return torch.ops.aten.gelu_(y) if gelu else y
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()  # with some other strides, oneDNN is slower by orders of magnitude
    bias = bias if bias is None else bias.contiguous()  # this operation ignores the stride of a bias
    activation = ("gelu", [], "none") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *activation)


def add_product(total: Tensor, x: Tensor, weight: Tensor):
    """Add x @ weight.T to total, in total's dtype: products in half precision are summed in float32."""
    if total.dtype == x.dtype and not by_onednn(x, weight):
        total.addmm_(x, weight.T)
    else:
        total += product(x, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias: (M, K), (N, K), (N,) -> (M, N), with derivatives."""
    autocast = x.device.type == "cpu" and x.dtype != torch.float64 and torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    if (wide := fast_dtype(dtype, x.device)) != dtype and (autocast or x.dtype == weight.dtype):
        inputs = [factor if factor is None else factor.to(wide) for factor in (x, weight, bias)]
        with torch.autocast("cpu", enabled=False):
            return linear(*inputs).to(dtype)
    if by_onednn(x, weight) and not autocast:
        return _Linear.apply(x, weight, bias)
    if bias is None:
        return x @ weight.T
    # The samples of a channel stay adjacent, unless they are so few that torch is slower that way.
    if x.device.type == "cpu" and x.dim() == 2 and x.stride(0) == 1 and len(x) >= FEWEST_COLUMNS:
        return torch.addmm(bias[:, None], weight, x.T).T
    return F.linear(x, weight, bias)


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN is asked for a product x @ weight.T: of plain matrices in float32 on a CPU, outside
    torch.compile."""
    if torch.compiler.is_compiling() or not _is_faster_by_onednn() or not x.dim() == weight.dim() == 2:
        return False
    if not all(type(factor) in (Tensor, torch.nn.Parameter) and factor.device.type == "cpu" for factor in (x, weight)):
        return False
    if not x.dtype == weight.dtype == torch.float32 or x.numel() == 0:
        return False
    return _capabilities()["avx512_f"] or len(x) >= 32 * len(weight)


@functools.cache
def _is_faster_by_onednn() -> bool:
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return "avx512_f" in _capabilities() and "Intel" not in str(_capabilities().get("cpu_name"))  # not on ARM


@functools.cache
def _capabilities() -> dict:
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # not in older versions


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dx = product(dy, weight.T) if needs_x else None
        d_weight = product(dy.T, x.T) if needs_weight else None
        return dx, d_weight, dy.sum(0) if needs_bias else None
