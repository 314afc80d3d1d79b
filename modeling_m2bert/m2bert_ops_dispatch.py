"""Choose the kernels of an operation when it runs, by its argument, by M2BERT_KERNELS, or by what the device offers."""

import functools
import logging
import os

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
KERNELS = ("auto", "torch", "triton")


def run(name: str, *arguments):
    """Call the function `name` of the chosen kernels.

    Autocast is off in the function: the dtypes of the arguments decide the precision.

    Args:
        arguments: of the function, then the argument `kernels` of choose_kernels. The first one is a tensor on the
            device that computes.
    """
    x, *others, kernels = arguments
    with torch.autocast(x.device.type, enabled=False), torch.cuda.device_of(x):
        return load_kernels(choose_kernels(kernels, x))[name](x, *others)


def choose_kernels(kernels: str, x: Tensor) -> str:
    """Return `torch` or `triton` for an operation on x.

    Args:
        kernels: "torch", "triton" or "auto"; "" means what M2BERT_KERNELS says, else "auto".

    Raises:
        ValueError: the choice is unknown, or triton is wanted where it cannot run.
    """
    source = "kernels" if kernels else "M2BERT_KERNELS"
    wanted = kernels or os.environ.get("M2BERT_KERNELS") or "auto"
    if wanted not in KERNELS:
        raise ValueError(f"{source}={wanted!r} is unknown; choose one of {', '.join(KERNELS)}")
    surprising = False
    if wanted == "torch":
        chosen, why = "torch", f"{source}=torch"
    elif x.dtype == torch.float64:
        chosen, why = "torch", "float64"
    elif obstacle := _obstacle(x.device, wanted):
        if wanted == "triton":
            raise ValueError(f"{source}='triton' cannot be had: {obstacle}; use 'auto' or 'torch'")
        chosen, why, surprising = "torch", obstacle, x.is_cuda
    else:
        chosen, why = "triton", f"{source}={wanted}, {x.device.type}"
    _announce(chosen, why, surprising)
    return chosen


def _obstacle(device: torch.device, wanted: str) -> str | None:
    """Return why triton cannot run on a device, or None if it can.

    Triton's interpreter (TRITON_INTERPRET=1) runs on any device. It is for tests, and is used only if the choice is
    "triton", not "auto". Under "auto", a trivial kernel has to run once on the device: triton needs compilers, which a
    container may not have.
    """
    if device.type == "cuda" and torch.version.hip:
        return "the GPU is AMD's (ROCm), and these kernels need an NVIDIA GPU"
    if device.type == "cuda" and _capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if device.type != "cuda" and wanted != "triton":
        return f"the tensors are on {device.type!r}, and triton needs an NVIDIA GPU"
    triton = _triton()
    if triton is None:
        return "the package triton is not installed (pip install triton)"
    if device.type == "cuda":
        return _launch_failure(device) if wanted == "auto" else None
    return None if triton.knobs.runtime.interpret else f"triton needs an NVIDIA GPU, and tensors are on {device.type!r}"


@functools.cache
def _triton():
    """Return the module triton, or None if it is not installed."""
    try:  # transformers requires every package that a model's code imports, except those imported in a try block
        import triton
    except ImportError:
        return None
    return triton


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def _launch_failure(device: torch.device) -> str | None:
    """Return why triton cannot launch a kernel on a GPU, or None if it can."""
    from .m2bert_ops_triton import nothing

    try:
        with torch.cuda.device(device):
            nothing[(1,)](0)
    except Exception as error:  # compilers, linker and driver raise what they like
        return f"triton cannot launch a kernel: {error}"
    return None


@functools.cache
def _announce(chosen: str, why: str, surprising: bool):
    logger.log(logging.WARNING if surprising else logging.INFO, "m2bert uses its %s kernels: %s", chosen, why)


@functools.cache
def load_kernels(kernels: str) -> dict:
    """Return the functions of the kernels `torch` or `triton`, by name."""
    if kernels == "torch":
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
