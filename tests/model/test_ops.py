"""The plain operations against direct sums in float64."""

import pytest
import torch

from modeling_m2bert import M2BertModel
from modeling_m2bert.m2bert_ops_torch import block_diagonal_linear, fft_length, long_conv, short_conv


def direct_long_conv(x, forward_filter, reverse_filter, skip):
    """O(L^2) sum of the definition, term by term."""
    y = skip[:, None] * x
    for t in range(x.shape[-1]):
        for j in range(x.shape[-1]):
            tap = forward_filter[:, t - j] if j <= t else reverse_filter[:, j - t - 1]
            y[..., t] += tap * x[..., j]
    return y


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 31, 45])
def test_long_conv_is_the_two_sided_sum(length):
    torch.manual_seed(length)
    arguments = [torch.randn(shape, dtype=torch.float64, requires_grad=True)
                 for shape in ((2, 3, length), (3, length), (3, length), (3,))]  # fmt: skip
    actual, expected = long_conv(*arguments), direct_long_conv(*arguments)
    assert (actual - expected).abs().max() < 1e-12
    direction = torch.randn_like(expected)
    actual_gradients = torch.autograd.grad(actual, arguments, direction)
    expected_gradients = torch.autograd.grad(expected, arguments, direction, allow_unused=True)
    for ours, theirs in zip(actual_gradients, expected_gradients, strict=True):
        theirs = torch.zeros_like(ours) if theirs is None else theirs
        assert (ours - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_conv_of_half_precision_is_computed_in_float32(dtype):
    torch.manual_seed(0)
    x, taps, skip = torch.randn(2, 4, 30).to(dtype), torch.randn(2, 4, 30), torch.randn(4)
    y = long_conv(x, taps[0], taps[1], skip)
    assert y.dtype == dtype
    exact = long_conv(x.double(), taps[0].double(), taps[1].double(), skip.double())
    assert (y.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_long_conv_of_a_float64_signal_is_computed_in_float64():
    torch.manual_seed(0)
    x, taps, skip = torch.randn(2, 4, 30).double(), torch.randn(2, 4, 30), torch.randn(4)
    exact = long_conv(x, taps[0].double(), taps[1].double(), skip.double())
    assert (long_conv(x, taps[0], taps[1], skip) - exact).abs().max() < 1e-5
    assert long_conv(x, taps[0], taps[1], skip).dtype == torch.float64


def test_a_text_costs_what_its_length_costs(tiny_config, monkeypatch):
    """The transforms of a short text in a model with a long context are short."""
    sizes, rfft = [], torch.fft.rfft
    monkeypatch.setattr(torch.fft, "rfft", lambda x, n=None: sizes.append(n or x.shape[-1]) or rfft(x, n=n))
    model = M2BertModel(tiny_config(max_position_embeddings=4096)).eval()
    model(torch.ones(1, 10, dtype=torch.long))
    assert len(sizes) == 2 * 2 * 2  # signal and filter, gated and residual, two layers
    assert set(sizes) == {20}


def test_short_conv_is_causal_with_the_last_tap_on_the_current_position():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 9), torch.randn(5, 1, 3), torch.randn(5)
    y = short_conv(x, weight, bias)
    for t in range(9):
        expected = bias + sum(weight[:, 0, 2 - lag] * x[..., t - lag] for lag in range(min(t, 2) + 1))
        assert torch.allclose(y[..., t], expected, atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_block_diagonal_linear_equals_its_dense_matrix(blocks):
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(2, 3, 8).double(),
        torch.randn(blocks, 12 // blocks, 8 // blocks).double(),
        torch.randn(12).double(),
    )
    expected = x @ torch.block_diag(*weight).T
    assert torch.allclose(block_diagonal_linear(x, weight), expected, atol=1e-12)
    assert torch.allclose(block_diagonal_linear(x, weight, bias), expected + bias, atol=1e-12)


def test_fft_length_is_even_long_enough_and_never_much_longer():
    for length in range(1, 3000):
        n = fft_length(length)
        assert n % 2 == 0
        assert n >= 2 * length
        assert n <= 2 * length * 1.125 + 2
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        assert n == 1
