"""Import Triton for the kernels. transformers requires every package that a model's code imports outside of `try`."""

try:
    import triton
    import triton.language as tl
except ImportError:  # m2bert_ops_dispatch refuses these kernels before they are imported
    triton = tl = None

__all__ = ["tl", "triton"]
