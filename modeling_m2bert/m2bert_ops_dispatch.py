"""Which kernels an operation runs on, decided when it runs: its argument, M2BERT_KERNELS, or what the device offers."""

import functools
import logging
import os

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
KERNELS = ("auto", "torch", "triton")


def run(name: str, *arguments):
    """Call the function `name` of the chosen kernels with all arguments but the last, which is the choice (as in
    choose_kernels). The first argument is a tensor on the device that computes. Autocast is off inside: precision is
    decided by the arguments."""
    x, *others, kernels = arguments
    with torch.autocast(x.device.type, enabled=False), torch.cuda.device_of(x):
        return functions(choose_kernels(kernels, x))[name](x, *others)


def choose_kernels(kernels: str, x: Tensor) -> str:
    """Return `torch` or `triton` for an operation on x.

    Args:
        kernels: "torch", "triton", "auto"; "": what M2BERT_KERNELS says, else "auto".

    Raises:
        ValueError: an unknown choice, or triton where it cannot run; the message says why.
    """
    source = "kernels" if kernels else "M2BERT_KERNELS"
    wanted = kernels or os.environ.get("M2BERT_KERNELS") or "auto"
    if wanted not in KERNELS:
        raise ValueError(f"{source}={wanted!r} is unknown; choose one of {', '.join(KERNELS)}")
    if wanted == "torch" or x.dtype == torch.float64:
        chosen, why = "torch", f"{source}=torch" if wanted == "torch" else "float64"
    else:
        obstacle = _obstacle(x.device, wanted)
        if obstacle and wanted == "triton":
            raise ValueError(f"{source}='triton' cannot be had: {obstacle}; use 'auto' or 'torch'")
        chosen, why = ("torch", obstacle) if obstacle else ("triton", f"{source}={wanted}, {x.device.type}")
    _announce(chosen, why, x.is_cuda and chosen == "torch" and wanted == "auto" and x.dtype != torch.float64)
    return chosen


def _obstacle(device: torch.device, wanted: str) -> str | None:
    """Return why triton cannot run on a device, or None. Its interpreter (TRITON_INTERPRET=1, any device) runs only
    where triton is wanted by name: it is for tests."""
    if device.type != "cuda" and wanted != "triton":
        return f"the tensors are on {device.type!r}, and triton needs an NVIDIA GPU"
    triton = _triton()
    if triton is None:
        return "the package triton is not installed (pip install triton)"
    if device.type == "cuda":
        return "the GPU is older than compute capability 8.0" if _capability(device) < (8, 0) else None
    return None if triton.knobs.runtime.interpret else f"triton needs an NVIDIA GPU, and tensors are on {device.type!r}"


@functools.cache
def _triton():
    """Return the module, or None where it is not installed."""
    try:  # transformers demands every package of a model's code but those that are imported like this
        import triton
    except ImportError:
        return None
    return triton


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def _announce(chosen: str, why: str, surprising: bool):
    logger.log(logging.WARNING if surprising else logging.INFO, "m2bert uses its %s kernels: %s", chosen, why)


@functools.cache
def functions(path: str) -> dict:
    """Return the functions of `torch` or `triton` by name."""
    if path == "torch":
        from .m2bert_ops_torch import (
            add_layer_norm,
            add_layer_norm_backward,
            block_diagonal_glu,
            block_diagonal_glu_backward,
            short_conv_gate,
            short_conv_gate_backward,
        )
        from .m2bert_ops_torch_conv import long_conv, long_conv_backward, prepare_filter
    else:
        from .m2bert_ops_triton_conv import long_conv, prepare_filter
        from .m2bert_ops_triton_conv_backward import long_conv_backward
        from .m2bert_ops_triton_mlp import block_diagonal_glu, block_diagonal_glu_backward
        from .m2bert_ops_triton_norm import add_layer_norm, add_layer_norm_backward
        from .m2bert_ops_triton_short import short_conv_gate, short_conv_gate_backward
    found = prepare_filter, long_conv, long_conv_backward, short_conv_gate, short_conv_gate_backward
    found += block_diagonal_glu, block_diagonal_glu_backward, add_layer_norm, add_layer_norm_backward
    return {function.__name__: function for function in found}
