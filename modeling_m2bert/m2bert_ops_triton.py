"""Triton, for the files of kernels. transformers demands every package that a model's code imports outside of `try`."""

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("m2bert's GPU kernels need triton; pip install triton") from error

__all__ = ["tl", "triton"]
