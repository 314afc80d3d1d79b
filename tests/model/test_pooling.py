"""Poolings against their formulas, and their precision over long texts."""

import pytest
import torch

from modeling_m2bert.m2bert_pooling import masked_mean, weighted_mean


def test_masked_mean():
    x, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    assert torch.allclose(masked_mean(x, mask), torch.stack([x[0].mean(0), x[1, :2].mean(0)]), atol=1e-6)


def test_weighted_mean_concatenates_one_weighted_mean_a_head():
    x, log_weights = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    pooled = weighted_mean(x, mask, log_weights)
    for row, length in ((0, 5), (1, 2)):
        for head in range(4):
            weights = log_weights[row, :length, head].exp()
            expected = (weights[:, None] * x[row, :length]).sum(0) / weights.sum()
            assert torch.allclose(pooled[row, 3 * head : 3 * head + 3], expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_over_long_texts_round_once(dtype):
    """Summed in half precision, 20,000 positions would lose most of their digits."""
    torch.manual_seed(0)
    x, mask = (1 + 0.1 * torch.randn(1, 20_000, 4)).to(dtype), torch.ones(1, 20_000, dtype=torch.bool)
    exact = x.double().mean(1)
    for pooled in (masked_mean(x, mask), weighted_mean(x, mask, torch.zeros(1, 20_000, 1, dtype=dtype))):
        assert pooled.dtype == dtype
        assert (pooled.double() - exact).abs().max() <= torch.finfo(dtype).eps
