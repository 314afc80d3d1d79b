"""A text's vectors do not depend on padding, batch mates or order; and what `visible` padding does instead."""

import pytest
import torch

from modeling_m2bert import M2BertForSequenceClassification, M2BertModel

POOLINGS = ["mean", "weighted_mean", "cls", "cls_tanh", "mean_tanh"]
LENGTHS = [1, 2, 5, 17, 29, 40]


def make(config, randomised, dtype=torch.float64):
    torch.manual_seed(0)
    return randomised(M2BertModel(config)).to(dtype)


def texts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 120, (1, length), generator=generator) for length in LENGTHS]


def pad(rows, length):
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : row.shape[1]], mask[i, : row.shape[1]] = row[0], 1
    return ids, mask


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


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "options", [{}, {"mixer_layer_norm": True}, {"residual_long_conv": False}, {"num_hidden_layers": 0}]
)
def test_padding_and_batch_mates_change_nothing(tiny_config, randomised, pooling, options):
    heads = 3 if pooling == "weighted_mean" else 1
    model = make(tiny_config(pooling=pooling, num_pooling_heads=heads, **options), randomised)
    for length in (40, 41, 48):
        assert largest_difference(model, texts(), length) < 1e-10


def test_order_changes_nothing(tiny_config, randomised):
    model = make(tiny_config(), randomised)
    ids, mask = pad(texts(), 40)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        assert (
            model(ids, mask).pooler_output[order] - model(ids[order], mask[order]).pooler_output
        ).abs().max() < 1e-12


def test_what_stands_in_padded_positions_cannot_be_seen(tiny_config, randomised):
    model = make(tiny_config(), randomised)
    ids, mask = pad(texts(), 48)
    other = torch.where(mask.bool(), ids, torch.randint(1, 120, ids.shape))
    with torch.no_grad():
        a, b = model(ids, mask), model(other, mask)
    assert torch.equal(a.last_hidden_state, b.last_hidden_state)
    embeds = model.embeddings.word_embeddings(ids).masked_fill(~mask[..., None].bool(), torch.nan)
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state, a.last_hidden_state)


@pytest.mark.parametrize("options", [{}, {"mixer_layer_norm": True}, {"num_hidden_layers": 0}])
def test_padded_outputs_are_exactly_zero(tiny_config, randomised, options):
    model = make(tiny_config(**options), randomised, torch.float32)
    ids, mask = pad(texts(), 48)
    with torch.no_grad():
        outputs = model(ids, mask, output_hidden_states=True)
    for hidden in (*outputs.hidden_states, outputs.last_hidden_state):
        assert hidden[~mask.bool()].eq(0).all()
        assert hidden[mask.bool()].ne(0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "cls_tanh"])
def test_rounding_by_padding_is_within_twice_the_precision_itself(tiny_config, randomised, dtype, pooling):
    """Padding changes only the FFT length, and so only rounding: hidden states and vectors stay within twice the
    model's own distance to float64. In bfloat16 a vector keeps its direction to 1e-4 in cosine."""
    model = make(tiny_config(pooling=pooling, max_position_embeddings=200), randomised, dtype)
    exact = make(tiny_config(pooling=pooling, max_position_embeddings=200), randomised, dtype).double()
    rows = [*texts(), *texts(seed=1)]
    ids, mask = pad(rows, 200)
    with torch.no_grad():
        padded, alone, true = model(ids, mask), [model(row) for row in rows], [exact(row) for row in rows]
    for pick in (lambda out, i, n: out.pooler_output[i], lambda out, i, n: out.last_hidden_state[i, :n]):
        lengths = [row.shape[1] for row in rows]
        own = max(
            (pick(a, 0, n).double() - pick(t, 0, n)).abs().max() for a, t, n in zip(alone, true, lengths, strict=True)
        )
        for i, n in enumerate(lengths):
            assert (pick(padded, i, n).double() - pick(alone[i], 0, n).double()).abs().max() <= 2 * own
    if dtype == torch.bfloat16:
        vectors = torch.cat([out.pooler_output for out in alone]).double()
        assert torch.cosine_similarity(padded.pooler_output.double(), vectors).min() > 1 - 1e-4


def test_padding_cannot_be_seen_under_autocast(tiny_config, randomised):
    model = make(tiny_config(), randomised, torch.float32)
    ids, mask = pad(texts(), 48)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(ids, mask, output_hidden_states=True)
        other = model(torch.where(mask.bool(), ids, 7), mask)
    assert all(hidden[~mask.bool()].eq(0).all() for hidden in outputs.hidden_states)
    assert torch.equal(outputs.pooler_output, other.pooler_output)


def test_gradients_do_not_see_padding(tiny_config, randomised):
    model = make(tiny_config(), randomised)
    rows = texts()
    (sum(model(row).pooler_output.square().sum() for row in rows)).backward()
    alone = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(*pad(rows, 48)).pooler_output.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad - alone[name]).abs().max() <= 1e-9 * max(1, alone[name].abs().max()), name


def test_visible_padding_is_seen(tiny_config, randomised):
    model = make(tiny_config(padding="visible"), randomised)
    assert largest_difference(model, texts(), 48) > 1e-3


def test_a_row_without_real_positions_gives_zeros_not_nan(tiny_config, randomised):
    for pooling in ("mean", "weighted_mean"):
        model = make(tiny_config(pooling=pooling), randomised)
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


def test_classifier_logits_do_not_see_padding(tiny_config, randomised):
    model = randomised(M2BertForSequenceClassification(tiny_config(num_labels=3))).double()
    rows = texts()
    with torch.no_grad():
        padded = model(*pad(rows, 48)).logits
        alone = torch.cat([model(row).logits for row in rows])
    assert (padded - alone).abs().max() < 1e-10
