import numpy as np
import pytest
import torch
from torch import nn

from m2bert.eval.encoders import sentence_transformer as late_chunking
from m2bert.eval.encoders.policies import parse_policy, unit_rows
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder

TEXTS = ["apple pear", "stone wall cloud rain river bridge", "", "horse saddle boat sail " * 3]


@pytest.fixture
def encoder(tiny_model, monkeypatch):
    monkeypatch.setattr(late_chunking, "FEWEST_TOKENS", 2)  # the model takes 12
    return SentenceTransformerEncoder(tiny_model)


@pytest.fixture
def pools_itself(encoder):
    """As a model whose transformers module gives the text's vector: by a mask-weighted mean of its own."""

    class Pooler(nn.Module):
        pooling = "mean"

        def forward(self, hidden_states, mask, input_ids):
            weights = mask * (1 + input_ids)  # depends on ids, so that they are needed
            return torch.einsum("bl,blh->bh", weights / weights.sum(1, keepdim=True), hidden_states)

    class Model(nn.Module):
        def __init__(self, bert):
            super().__init__()
            self.bert, self.pooler, self.config = bert, Pooler(), bert.config

        def forward(self, input_ids, attention_mask=None, token_type_ids=None, **_):
            outputs = self.bert(input_ids, attention_mask, token_type_ids)
            outputs.pooler_output = self.pooler(outputs.last_hidden_state, attention_mask.bool(), input_ids)
            return outputs

    transformer = encoder.model[0]
    transformer.model = Model(transformer.model)
    transformer.modality_config["text"]["method_output_name"] = "pooler_output"
    transformer.module_output_name = "sentence_embedding"
    del encoder.model[1]
    return encoder


@pytest.mark.parametrize("kind", ["encoder", "pools_itself"])
def test_one_part_is_the_truncated_document(kind, request):
    encoder = request.getfixturevalue(kind)
    one = parse_policy("late-chunk:vectors=1").embed(encoder, TEXTS)
    truncated = parse_policy("truncate").embed(encoder, TEXTS)
    np.testing.assert_allclose(one.rows, truncated.rows, atol=1e-6)
    assert one.counts.tolist() == [1] * 4
    assert one.seen.tolist() == truncated.seen.tolist() == pytest.approx([1, 1, 1, 10 / 12])


def test_parts_are_means_over_equal_stretches_of_one_pass(encoder):
    """The special tokens belong to the first and the last part."""
    rows, counts = encoder.encode_parts(TEXTS, 3)
    assert counts.tolist() == [2, 3, 1, 3]  # 4, 8, 2 and 12 tokens: at least two a part
    states = encoder.model.encode(TEXTS, output_value="token_embeddings")
    stretches = [(0, 0, 2), (0, 2, 4), (1, 0, 3), (1, 3, 6), (1, 6, 8), (2, 0, 2), (3, 0, 4), (3, 4, 8), (3, 8, 12)]
    means = [states[text][first:last].mean(0).numpy() for text, first, last in stretches]
    np.testing.assert_allclose(rows, unit_rows(np.stack(means)), atol=1e-6)


@pytest.mark.parametrize("kind", ["encoder", "pools_itself"])
def test_parts_do_not_depend_on_batch_mates(kind, request):
    encoder = request.getfixturevalue(kind)
    together, counts = encoder.encode_parts(TEXTS, 4)
    alone = [encoder.encode_parts([text], 4) for text in TEXTS]
    np.testing.assert_allclose(together, np.concatenate([rows for rows, _ in alone]), atol=1e-5)
    assert counts.tolist() == [int(its[0]) for _, its in alone]
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_a_prompt_that_is_not_pooled_stays_out_of_every_part(encoder, monkeypatch):
    monkeypatch.setitem(encoder.model.prompts, "document", "rain ")
    for include in (True, False):
        encoder.model.set_pooling_include_prompt(include)
        one, _ = encoder.encode_parts(TEXTS, 1)
        np.testing.assert_allclose(one, encoder.encode(TEXTS, "document"), atol=1e-6)
    rows, counts = encoder.encode_parts(["wall cloud"], 2)
    state = encoder.model.encode_document(["wall cloud"], output_value="token_embeddings")[0]  # [CLS] rain wall ...
    assert counts.tolist() == [2]
    np.testing.assert_allclose(rows, unit_rows(np.stack([state[2:4].mean(0), state[4:].mean(0)])), atol=1e-6)


@pytest.mark.parametrize(("mode", "allowed"), [("cls", False), ("lasttoken", False), ("weightedmean", True)])
def test_pooling_of_one_token_is_refused_by_name(encoder, mode, allowed):
    encoder.model[1].pooling_mode = mode
    if allowed:
        assert encoder.encode_parts(TEXTS, 2)[1].tolist() == [2, 2, 1, 2]
    else:
        with pytest.raises(ValueError, match=f"encoder '.*tiny' .*pooling {mode} is no mean"):
            encoder.encode_parts(TEXTS, 2)


def test_models_that_pool_in_an_unknown_way_are_refused(encoder, pools_itself):
    pools_itself.model[0].model.pooler.pooling = "cls_tanh"
    with pytest.raises(ValueError, match="pooling cls_tanh is no mean"):
        pools_itself.encode_parts(TEXTS, 2)
    pools_itself.model[0].model.pooler = encoder.model[0].model.bert.pooler  # of the hidden states alone
    with pytest.raises(ValueError, match="takes no mask of tokens"):
        pools_itself.encode_parts(TEXTS, 2)
    pools_itself.model[0] = nn.Identity()
    with pytest.raises(ValueError, match="first module is Identity, not a Transformer"):
        late_chunking.check_late_chunking(pools_itself.model, "x")
