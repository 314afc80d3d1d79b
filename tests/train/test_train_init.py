"""Starts: the identity is exact, and token weights follow document frequency."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM

from m2bert_train.init import (
    MAX_IDF,
    MIN_IDF,
    OTHER_HEADS,
    identity_start_,
    idf_start_,
    inverse_document_frequency,
    unigram_start_,
)

IDS = torch.arange(1, 41).view(2, 20)


def test_identity_started_layers_change_nothing_and_learn(tiny_config):
    model = AutoModel.from_config(tiny_config(num_hidden_layers=3)).double()
    identity_start_(model)
    outputs = model(IDS, output_hidden_states=True)
    for hidden in outputs.hidden_states[1:]:
        assert (hidden - outputs.hidden_states[0]).abs().max() < 1e-8
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS).pooler_output[:, :5].sum().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_identity_start_needs_the_residual_convolution(tiny_config):
    with pytest.raises(ValueError, match="residual_long_conv"):
        identity_start_(AutoModel.from_config(tiny_config(residual_long_conv=False)))


def test_inverse_document_frequency_counts_chunks():
    documents = [np.array([10, 11, 10]), np.array([10, 12]), np.concatenate([np.full(1024, 13), [11]])]  # 4 chunks
    idf = inverse_document_frequency(documents, 20, special_ids=[0, 13])
    assert idf[10] == pytest.approx(math.log(2))
    assert idf[12] == pytest.approx(math.log(4))
    assert idf[11] == pytest.approx(math.log(2))
    assert idf[15] == MAX_IDF
    assert idf[13] == np.float32(MIN_IDF)


def test_idf_start_weighs_each_token_in_one_head(tiny_config):
    model = AutoModel.from_config(tiny_config(pooling="weighted_mean", num_pooling_heads=3))
    idf = np.linspace(0.1, 5, 100, dtype=np.float32)  # fewer than vocab_size
    idf_start_(model, idf, seed=0)
    weights = model.pooler.token_log_weights.weight.detach().exp()
    assert torch.allclose(weights.max(1).values[:100], torch.from_numpy(idf), rtol=1e-5)
    assert torch.allclose(weights.min(1).values, weights.max(1).values * OTHER_HEADS, rtol=1e-5)
    assert torch.allclose(weights.max(1).values[100:], torch.tensor(MAX_IDF))
    assert (weights.argmax(1).bincount() > 20).all()


def test_unigram_start_predicts_token_frequency(tiny_config):
    model = AutoModelForMaskedLM.from_config(tiny_config())
    unigram_start_(model, np.array([[7, 7, 7], [9, 9, 4]]))
    probabilities = model.lm_head.decoder.bias.detach().softmax(0)
    assert probabilities[7] == pytest.approx(4 / 126, rel=1e-5)
    assert probabilities[9] == pytest.approx(3 / 126, rel=1e-5)
    assert probabilities[50] == pytest.approx(1 / 126, rel=1e-5)
