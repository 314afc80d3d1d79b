"""Poolings against their formulas, and their precision over long texts."""

import pytest
import torch

from modeling_m2bert import M2BertConfig, M2BertModel
from modeling_m2bert.m2bert_pooling import log_saturation, masked_mean, occurrences, weighted_mean


def test_masked_mean():
    x, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    assert torch.allclose(masked_mean(x, mask), torch.stack([x[0].mean(0), x[1, :2].mean(0)]), atol=1e-6)


def test_weighted_mean_shares_its_weights_among_heads():
    x, log_weights = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    pooled = weighted_mean(x, mask, log_weights)
    for row, length in ((0, 5), (1, 2)):
        weights = log_weights[row, :length].exp() / log_weights[row, :length].exp().sum()
        for head in range(4):
            expected = (weights[:, head, None] * x[row, :length]).sum(0)
            assert torch.allclose(pooled[row, 3 * head : 3 * head + 3], expected, atol=1e-6)


def test_a_row_without_tokens_gives_zeros():
    pooled = weighted_mean(torch.randn(1, 5, 3), torch.zeros(1, 5, dtype=torch.bool), torch.randn(1, 5, 2))
    assert torch.equal(pooled, torch.zeros(1, 6))


def test_occurrences_are_counted_among_real_positions_of_their_row():
    ids = torch.tensor([[7, 3, 7, 7, 0], [7, 0, 0, 7, 7]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    counts = occurrences(ids, mask)
    assert counts[0].tolist() == [3, 1, 3, 3, 1]
    assert counts[1, :3].tolist() == [1, 2, 2]


def test_all_occurrences_together_weigh_the_logarithm():
    counts = torch.tensor([1.0, 2, 10, 1000])
    together = counts * log_saturation(counts, 2.0).exp()
    assert torch.allclose(together, (1 + counts / 2.0).log())


@pytest.mark.parametrize("contextual", [False, True])
def test_saturated_pooling_of_a_model_is_a_sum_over_distinct_tokens(contextual):
    """Without layers a token's state depends on its id alone, so a text is the set of its ids and their counts."""
    config = M2BertConfig(
        vocab_size=64, hidden_size=8, num_hidden_layers=0, max_position_embeddings=64, position_embeddings=False,
        pooling="weighted_mean", num_pooling_heads=2, pooling_saturation=3, contextual_pooling=contextual,
    )  # fmt: skip
    model = M2BertModel(config).eval().double()
    ids = torch.tensor([[5, 9, 9, 9, 30]])
    with torch.no_grad():
        pooled = model(ids).pooler_output[0]
        distinct = torch.tensor([5, 9, 30])
        states = model.embeddings.norm(
            model.embeddings.word_embeddings(distinct) + model.embeddings.token_type_embeddings.weight[0]
        )
        log_weights = model.pooler.token_log_weights(distinct)
        if contextual:
            log_weights = log_weights + model.pooler.context_log_weights(states)
        weights = log_weights.exp() * (1 + torch.tensor([1.0, 3.0, 1.0]).double() / 3).log()[:, None]
        expected = torch.einsum("nk,nh->kh", weights / weights.sum(), states).flatten()
    assert torch.allclose(pooled, expected, atol=1e-12)


def test_saturated_pooling_does_not_see_padding_or_order():
    config = M2BertConfig(
        vocab_size=64, hidden_size=8, num_hidden_layers=1, intermediate_size=16, max_position_embeddings=64,
        filter_order=8, pooling="weighted_mean", num_pooling_heads=2, pooling_saturation=2, contextual_pooling=True,
    )  # fmt: skip
    model = M2BertModel(config).eval().double()
    rows = [torch.randint(1, 20, (length,)) for length in (30, 7, 13)]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    with torch.no_grad():
        together = model(batch, mask).pooler_output
        turned = model(batch.flip(0), mask.flip(0)).pooler_output.flip(0)
        alone = torch.cat([model(row[None]).pooler_output for row in rows])
    assert torch.allclose(together, alone, atol=1e-10)
    assert torch.allclose(together, turned, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_over_long_texts_round_once(dtype):
    """Summed in half precision, 20,000 positions would lose most of their digits."""
    torch.manual_seed(0)
    x, mask = (1 + 0.1 * torch.randn(1, 20_000, 4)).to(dtype), torch.ones(1, 20_000, dtype=torch.bool)
    exact = x.double().mean(1)
    for pooled in (masked_mean(x, mask), weighted_mean(x, mask, torch.zeros(1, 20_000, 1, dtype=dtype))):
        assert pooled.dtype == dtype
        assert (pooled.double() - exact).abs().max() <= torch.finfo(dtype).eps
