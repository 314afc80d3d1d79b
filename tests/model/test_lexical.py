"""The lexical vector beside the pooled one: its share of scores, words without order, and the model's invariants."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from modeling_m2bert import M2BertModel
from modeling_m2bert.m2bert_pooling import weighted_mean

IDS = torch.tensor([[5, 9, 9, 7, 11, 3], [7, 2, 9, 5, 1, 30], [40, 41, 7, 7, 7, 2]])


@pytest.fixture
def model(tiny_config, randomized):
    def make(**fields):
        torch.manual_seed(0)
        fields = {"pooling": "weighted_mean", "lexical_heads": 3, "lexical_size": 4, "lexical_saturation": 2} | fields
        return randomized(M2BertModel(tiny_config(**fields))).eval()

    return make


@torch.no_grad()
def test_cosines_are_the_weighted_sum_of_both_parts(model):
    both = model(lexical_share=0.3)
    size = both.config.hidden_size
    vectors = both(IDS).pooler_output
    assert vectors.shape == (3, both.config.projection_dim) == (3, size + 12)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    hidden, mask = both(IDS).last_hidden_state, torch.ones_like(IDS, dtype=torch.bool)
    pooled = weighted_mean(hidden, mask, both.pooler.log_weights(hidden, mask, IDS))
    lexical = both.pooler.lexical(mask, IDS)
    expected = 0.7 * cosine_similarity(pooled[0], pooled[1:]) + 0.3 * cosine_similarity(lexical[0], lexical[1:])
    torch.testing.assert_close(cosine_similarity(vectors[0], vectors[1:]), expected)


@torch.no_grad()
def test_the_lexical_vector_is_that_of_saturated_word_counts(model):
    lexical = model().pooler.lexical
    mask = torch.ones_like(IDS, dtype=torch.bool)
    counted = torch.zeros(3, 12)
    for row, ids in enumerate(IDS.tolist()):
        for token in set(ids):
            weight = lexical.token_log_weights.weight[token].exp() * torch.tensor(1 + ids.count(token) / 2).log()
            counted[row] += (weight[:, None] * lexical.word_embeddings.weight[token]).flatten()
    torch.testing.assert_close(normalize(lexical(mask, IDS)), normalize(counted))
    torch.testing.assert_close(lexical(mask, IDS.flip(1)), lexical(mask, IDS))


@pytest.mark.parametrize("rotation", [False, True])
@torch.no_grad()
def test_padding_and_saving_change_nothing(model, tmp_path, rotation):
    both = model(pooling_rotation=rotation)
    padded = torch.nn.functional.pad(IDS, (0, 5))
    mask = torch.nn.functional.pad(torch.ones_like(IDS), (0, 5))
    torch.testing.assert_close(both(padded, mask).pooler_output, both(IDS).pooler_output)
    both.save_pretrained(tmp_path)
    assert torch.equal(M2BertModel.from_pretrained(tmp_path).eval()(IDS).pooler_output, both(IDS).pooler_output)
    nothing = torch.zeros_like(IDS)
    assert torch.equal(both(IDS, nothing).pooler_output, torch.zeros(3, both.config.projection_dim))


@torch.no_grad()
def test_rotation_changes_no_cosine(model):
    vectors = [model(pooling_rotation=rotation)(IDS).pooler_output for rotation in (False, True)]
    assert not torch.allclose(*vectors)
    torch.testing.assert_close(*(rows @ rows.T for rows in vectors))


def test_both_parts_get_gradients(model):
    both = model()
    both(IDS).pooler_output.square().cumsum(1).sum().backward()
    for name in ("lexical.word_embeddings", "lexical.token_log_weights", "token_log_weights"):
        assert both.pooler.get_submodule(name).weight.grad[IDS.flatten()].abs().max() > 0


@torch.no_grad()
def test_a_larger_vocabulary_keeps_the_vectors(model):
    both = model()
    before = both(IDS).pooler_output
    both.resize_token_embeddings(both.config.vocab_size + 8)
    assert torch.equal(both(IDS).pooler_output, before)
    assert both(torch.full((1, 3), both.config.vocab_size - 1)).pooler_output.isfinite().all()


def test_token_ids_are_needed(model):
    both = model()
    with pytest.raises(ValueError, match="needs input_ids, not inputs_embeds"):
        both(inputs_embeds=torch.zeros(1, 4, both.config.hidden_size))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "mean"}, "lexical_heads=3 must be left out: only pooling='weighted_mean' has it, not 'mean'"),
        ({"lexical_heads": -1}, r"lexical_heads=-1 must be 0 \(no lexical vector\) or more"),
        ({"lexical_share": 0.0}, r"lexical_share=0.0 must be above 0 and below 1"),
        ({"lexical_saturation": 0}, r"lexical_saturation=0 must be above 0"),
        (
            {"pooling_rotation": True, "lexical_size": 5},
            "lexical_size=5 must be a divisor of the pooled vector's width",
        ),
    ],
)
def test_fields_that_do_not_fit_are_named(model, fields, message):
    with pytest.raises(ValueError, match=message):
        model(**fields)
