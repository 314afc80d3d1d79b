"""Import Triton for the kernels. transformers requires every package that a model's code imports outside of `try`."""

try:
    import triton
    import triton.language as tl
except ImportError:  # m2bert_ops_dispatch refuses these kernels before they are imported
    triton = tl = None
else:

    @triton.jit
    def nothing(number):
        """Do nothing. A launch shows whether kernels can be compiled and loaded."""


__all__ = ["nothing", "tl", "triton"]
