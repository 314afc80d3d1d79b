"""Every kernel of the long convolution as it is launched, compiled for Hopper: no spilled registers, fitting memory."""

import itertools

import pytest
import torch

pytest.importorskip("triton")

from modeling_m2bert import m2bert_ops_triton_conv as conv  # noqa: E402
from modeling_m2bert import m2bert_ops_triton_conv_backward as backward  # noqa: E402
from modeling_m2bert import m2bert_ops_triton_fused as fused  # noqa: E402
from modeling_m2bert import m2bert_ops_triton_stages as stages  # noqa: E402

KERNELS = {
    fused: ["convolve_rows"],
    stages: ["transform_rows", "multiply_spectra"],
    conv: ["multiply_toeplitz", "gate_rows"],
    backward: ["scale_rows", "sum_spectrum_gradient", "gradient_rows"],
}
WITHOUT_WGMMA = {"multiply_toeplitz", "scale_rows"}
SHARED_BYTES = 227 * 1024
SPILLED_BYTES = {("convolve_rows", 8192): 96}  # addresses for both of its convolutions, read once in each


def launch_all(dtype, m, with_residual, slots):
    x, skip, taps = torch.zeros(1, sum(slots), dtype=dtype), torch.zeros(1), torch.zeros(2, 1, 4)
    residual = (x, taps, skip) if with_residual else (None, None, None)
    lengths = torch.tensor(slots, dtype=torch.int32)
    rows = torch.tensor([0, *slots]).cumsum(0).int(), lengths, max(slots)
    prepared = conv.prepare_filter(taps, m, dtype)
    filters = prepared, prepared if with_residual else None
    conv.long_conv(x, x, residual[0], lambda _: filters, skip, residual[2], *rows)
    if m >= 512:
        conv.long_conv_backward(x, x, x, residual[0], taps, residual[1], skip, residual[2], *rows)


def launched():
    """(dtype, M) of all launches; some of them are enough for every day."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for m in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 10240, 16384):
            often = (dtype, m) in ((torch.bfloat16, 64), (torch.bfloat16, 2048), (torch.float32, 512))
            yield pytest.param(dtype, m, marks=() if often else pytest.mark.slow)


@pytest.mark.parametrize(("dtype", "m"), list(launched()))
def test_compiles_without_spills(dtype, m, launches, compile_sm90):
    specs = launches(KERNELS)
    for with_residual, slots in itertools.product((True, False), ([m] * 3, [m, m - 1] + [1] * 18)):
        launch_all(dtype, m, with_residual, slots)
    for spec, used in zip(specs, compile_sm90(specs), strict=True):
        report = f"{spec['kernel']} {spec['constexprs']} {spec['options']}: {used}"
        assert used["stack"] <= SPILLED_BYTES.get((spec["kernel"], m), 0), report
        assert used["shared"] <= SHARED_BYTES, report
        if m >= 2048 and dtype != torch.float32 and spec["kernel"] not in WITHOUT_WGMMA:
            assert used["wgmma"], report
