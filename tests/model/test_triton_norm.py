"""The layer norm's kernels against torch's in float64, in Triton's interpreter where there is no GPU."""

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

from modeling_m2bert import m2bert_ops_triton_norm as norm  # noqa: E402

EPS = 1e-5
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
NAMES = ["z", "dx", "d_weight", "d_bias"]


def composite(x, y, weight, bias, dz, dtype):
    x, y, weight, bias = (value.detach().to(dtype).requires_grad_() for value in (x, y, weight, bias))
    z = F.layer_norm(x + y, (x.shape[1],), weight, bias, EPS)
    return dict(zip(NAMES, [z, *torch.autograd.grad(z, [x, weight, bias], dz.to(dtype))], strict=True))


def run(x, y, weight, bias, dz):
    z = norm.add_layer_norm(x, y, weight, bias, EPS)
    return dict(zip(NAMES, [z, *norm.add_layer_norm_backward(dz, x, y, weight, EPS)], strict=True))


def arguments(tokens, channels, dtype, device):
    torch.manual_seed(tokens * channels)
    x, y, dz = (torch.randn(tokens, channels, device=device).to(dtype) for _ in range(3))
    weight, bias = (torch.randn(channels, device=device) for _ in range(2))
    return x + 3, y, weight, bias, dz


def check(values, hold_to_composite):
    dtype = values[0].dtype
    exact, plain = composite(*values, torch.float64), composite(*values, torch.float32)
    plain |= {name: plain[name].to(dtype) for name in ("z", "dx")}
    actual = run(*values)
    hold_to_composite(actual, plain, exact)
    assert actual["z"].dtype == actual["dx"].dtype == dtype
    assert actual["z"].T.is_contiguous()
    return actual


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "channels"), [(1, 768), (16, 768), (67, 768), (5, 1), (65, 33), (3, 1025)])
def test_forward_and_gradients(tokens, channels, dtype, device, poisoned, hold_to_composite):
    check(arguments(tokens, channels, dtype, device), hold_to_composite)


def test_more_tiles_than_programs(device, monkeypatch, poisoned, hold_to_composite):
    monkeypatch.setattr(norm, "PROGRAMS_BACKWARD", 3)
    check(arguments(21, 768, torch.float16, device), hold_to_composite)


@pytest.mark.parametrize("channel_major", ["x", "y", "dz", "all"])
def test_any_layout_of_the_inputs(channel_major, device, poisoned):
    x, y, weight, bias, dz = arguments(19, 96, torch.float16, device)
    expected = run(x, y, weight, bias, dz)
    streams = {"x": x, "y": y, "dz": dz}
    for name, value in streams.items():
        if channel_major in (name, "all"):
            streams[name] = value.T.contiguous().T
        else:  # a slice of a wider tensor
            streams[name] = torch.cat([torch.full_like(value, float("nan")), value], dim=1)[:, 96:]
    actual = run(streams["x"], streams["y"], weight, bias, streams["dz"])
    for name in NAMES:
        assert torch.equal(actual[name], expected[name]), name


def test_a_large_mean_costs_no_precision(device):
    """The variance is that of centered values, not a difference of two large sums."""
    x, _, weight, bias, _ = arguments(4, 768, torch.float32, device)
    x = (x - 3).round(decimals=2) + 4096
    expected = F.layer_norm(x.double(), (768,), weight.double(), bias.double(), EPS)
    assert (norm.add_layer_norm(x, torch.zeros_like(x), weight, bias, EPS).double() - expected).abs().max() < 2e-3


def test_no_tokens(device):
    x, y, weight, bias, dz = arguments(0, 48, torch.float32, device)
    actual = run(x, y, weight, bias, dz)
    assert actual["z"].shape == actual["dx"].shape == (0, 48)
    assert torch.equal(actual["d_weight"], torch.zeros_like(weight))
    assert torch.equal(actual["d_bias"], torch.zeros_like(bias))


KERNELS = {norm: ["_add_layer_norm_kernel", "_add_layer_norm_backward_kernel"]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow)
                                                     for dtype in (torch.float16, torch.float32))])  # fmt: skip
def test_machine_code(dtype, launches, compile_sm90):
    specs = launches(KERNELS)
    x, weight = torch.zeros(16, 768, dtype=dtype), torch.zeros(768)
    channel_major = x.T.contiguous().T
    for streams in ((x, x), (x, channel_major), (channel_major, x), (channel_major, channel_major)):
        run(streams[1], x, weight, weight, streams[0])
    assert len(specs) == 6
    for spec, needs in zip(specs, compile_sm90(specs), strict=True):
        assert needs["stack"] == 0, (spec, needs)
        assert needs["shared"] <= 32768, (spec, needs)
