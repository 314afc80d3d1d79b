"""A text's vectors do not depend on padding, batch mates or order (but with `visible` padding); and poolings against
their formulas."""

import pytest
import torch
from torch.nn import functional as F

from modeling_m2bert import M2BertConfig, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from modeling_m2bert.m2bert_pooling import masked_mean, weighted_mean

POOLINGS = ["mean", "weighted_mean", "cls", "cls_tanh", "mean_tanh"]
LENGTHS = [1, 2, 5, 17, 29, 40]


def make(config, randomized, dtype=torch.float64):
    torch.manual_seed(0)
    return randomized(M2BertModel(config)).to(dtype)


def texts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 120, (1, length), generator=generator) for length in LENGTHS]


def pad(rows, length):
    ids = torch.cat([F.pad(row, (0, length - row.shape[1])) for row in rows])
    return ids, (torch.arange(length) < torch.tensor([[row.shape[1]] for row in rows])).long()


def largest_difference(model, rows, length):
    """Hidden states and vectors of padded rows against each text alone."""
    with torch.no_grad():
        padded = model(*pad(rows, length))
        worst = 0.0
        for i, row in enumerate(rows):
            alone = model(row)
            hidden = padded.last_hidden_state[i, : row.shape[1]]
            worst = max(worst, (hidden - alone.last_hidden_state[0]).abs().max().item(),
                        (padded.pooler_output[i] - alone.pooler_output[0]).abs().max().item())  # fmt: skip
    return worst


SATURATED = {"pooling_saturation": 2, "contextual_pooling": True}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "options", [{}, {"mixer_layer_norm": True}, {"residual_long_conv": False}, {"num_hidden_layers": 0}]
)
def test_padding_and_batch_mates_change_nothing(tiny_config, randomized, pooling, options):
    heads = {"num_pooling_heads": 3} | (SATURATED if options else {}) if pooling == "weighted_mean" else {}
    model = make(tiny_config(pooling=pooling, **heads, **options), randomized)
    for length in (40, 41, 48):
        assert largest_difference(model, texts(), length) < 1e-10


def test_order_changes_nothing(tiny_config, randomized):
    model = make(tiny_config(), randomized)
    ids, mask = pad(texts(), 40)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        expected, found = model(ids, mask).pooler_output[order], model(ids[order], mask[order]).pooler_output
    assert (expected - found).abs().max() < 1e-12


def test_what_stands_in_padded_positions_cannot_be_seen(tiny_config, randomized):
    model = make(tiny_config(), randomized)
    ids, mask = pad(texts(), 48)
    other = torch.where(mask.bool(), ids, torch.randint(1, 120, ids.shape))
    with torch.no_grad():
        a, b = model(ids, mask), model(other, mask)
    assert torch.equal(a.last_hidden_state, b.last_hidden_state)
    embeds = model.embeddings.word_embeddings(ids).masked_fill(~mask[..., None].bool(), torch.nan)
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state, a.last_hidden_state)


@pytest.mark.parametrize("options", [{}, {"mixer_layer_norm": True}, {"num_hidden_layers": 0}])
def test_padded_outputs_are_exactly_zero(tiny_config, randomized, options):
    model = make(tiny_config(**options), randomized, torch.float32)
    ids, mask = pad(texts(), 48)
    with torch.no_grad():
        outputs = model(ids, mask, output_hidden_states=True)
    for hidden in (*outputs.hidden_states, outputs.last_hidden_state):
        assert hidden[~mask.bool()].eq(0).all()
        assert hidden[mask.bool()].ne(0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "cls_tanh"])
def test_rounding_by_padding_is_within_twice_the_precision_itself(tiny_config, randomized, dtype, pooling):
    """Padding changes only the FFT length, and so only rounding: hidden states and vectors stay within twice the
    model's own distance to float64. In bfloat16 a vector keeps its direction to 1e-4 in cosine."""
    model = make(tiny_config(pooling=pooling, max_position_embeddings=200), randomized, dtype)
    exact = make(tiny_config(pooling=pooling, max_position_embeddings=200), randomized, dtype).double()
    rows = [*texts(), *texts(seed=1)]
    ids, mask = pad(rows, 200)
    with torch.no_grad():
        padded, alone, true = model(ids, mask), [model(row) for row in rows], [exact(row) for row in rows]
    for pick in (lambda out, i, n: out.pooler_output[i], lambda out, i, n: out.last_hidden_state[i, :n]):
        values = [[pick(out, 0, row.shape[1]).double() for out, row in zip(each, rows, strict=True)]
                  for each in (alone, true)]  # fmt: skip
        own = max((ours - exact).abs().max() for ours, exact in zip(*values, strict=True))
        for i, ours in enumerate(values[0]):
            assert (pick(padded, i, rows[i].shape[1]).double() - ours).abs().max() <= 2 * own
    if dtype == torch.bfloat16:
        vectors = torch.cat([out.pooler_output for out in alone]).double()
        assert torch.cosine_similarity(padded.pooler_output.double(), vectors).min() > 1 - 1e-4


def test_padding_cannot_be_seen_under_autocast(tiny_config, randomized):
    model = make(tiny_config(), randomized, torch.float32)
    ids, mask = pad(texts(), 48)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(ids, mask, output_hidden_states=True)
        other = model(torch.where(mask.bool(), ids, 7), mask)
    assert all(hidden[~mask.bool()].eq(0).all() for hidden in outputs.hidden_states)
    assert torch.equal(outputs.pooler_output, other.pooler_output)


def test_gradients_do_not_see_padding(tiny_config, randomized):
    model = make(tiny_config(), randomized)
    rows = texts()
    (sum(model(row).pooler_output.square().sum() for row in rows)).backward()
    alone = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(*pad(rows, 48)).pooler_output.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad - alone[name]).abs().max() <= 1e-9 * max(1, alone[name].abs().max()), name


def test_visible_padding_is_seen(tiny_config, randomized):
    model = make(tiny_config(padding="visible"), randomized)
    assert largest_difference(model, texts(), 48) > 1e-3


def test_a_row_without_real_positions_gives_zeros_not_nan(tiny_config, randomized):
    for pooling in ("mean", "weighted_mean"):
        model = make(tiny_config(pooling=pooling), randomized)
        ids, mask = pad([*texts(), torch.zeros(1, 0, dtype=torch.long)], 40)
        with torch.no_grad():
            pooled = model(ids, mask).pooler_output
        assert pooled[-1].eq(0).all()
        assert pooled.isfinite().all()


def test_left_padding_is_refused_by_name(tiny_config):
    model = M2BertModel(tiny_config())
    with pytest.raises(ValueError, match="padding_side"):
        model(torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1], [0, 1, 1]]))
    with pytest.raises(ValueError, match="padding_side"):
        model(torch.ones(1, 3, dtype=torch.long), torch.tensor([[1, 0, 1]]))
    visible = M2BertModel(tiny_config(padding="visible"))
    assert visible(torch.ones(1, 3, dtype=torch.long), torch.tensor([[0, 1, 1]])).pooler_output.isfinite().all()


@pytest.mark.parametrize("cls", [M2BertForMaskedLM, M2BertForSequenceClassification])
def test_logits_do_not_see_padding(tiny_config, randomized, cls):
    model = randomized(cls(tiny_config())).double()
    rows = texts()
    with torch.no_grad():
        for padded, row in zip(model(*pad(rows, 48)).logits, rows, strict=True):
            alone = model(row).logits[0]
            assert (padded[: len(alone)] - alone).abs().max() < 1e-10


# poolings


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
        log_weights = model.pooler.token_log_weights.weight[distinct]
        if contextual:
            log_weights = log_weights + model.pooler.context_log_weights(states)
        weights = log_weights.exp() * (1 + torch.tensor([1.0, 3.0, 1.0]).double() / 3).log()[:, None]
        expected = torch.einsum("nk,nh->kh", weights / weights.sum(), states).flatten()
    assert torch.allclose(pooled, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_over_long_texts_are_not_rounded(dtype):
    """Summed in half precision, 20,000 positions would lose most of their digits."""
    torch.manual_seed(0)
    x, mask = (1 + 0.1 * torch.randn(1, 20_000, 4)).to(dtype), torch.ones(1, 20_000, dtype=torch.bool)
    exact = x.double().mean(1)
    for pooled in (masked_mean(x, mask), weighted_mean(x, mask, torch.zeros(1, 20_000, 1, dtype=dtype))):
        assert pooled.dtype == torch.float32
        assert (pooled.double() - exact).abs().max() <= 1e-5


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "cls", "cls_tanh", "mean_tanh"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_of_models_in_16_bits_are_float32(tiny_config, randomized, pooling, dtype):
    """So they can be normalized to length 1 by more than 3 digits; logits have the model's dtype."""
    ids = torch.arange(1, 31).view(2, 15)
    model = randomized(M2BertForSequenceClassification(tiny_config(pooling=pooling, num_labels=3))).to(dtype)
    with torch.no_grad():
        assert model(ids).logits.dtype == dtype
        assert model.model(ids).pooler_output.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert model.float().model(ids).pooler_output.dtype == torch.float32
        assert model.double().model(ids).pooler_output.dtype == torch.float64
