"""Losses against their formulas, written out."""

import math

import numpy as np
import pytest
import torch

from m2bert.train.losses import (
    alignment_loss,
    cosine_matrix,
    multiple_negatives_ranking_loss,
    orthogonal_projection_loss,
    prototype_loss,
)

COSINE = torch.tensor([[0.9, 0.1, -0.2], [0.3, 0.5, 0.4]], dtype=torch.float64)
RELEVANT = torch.tensor([[True, False, False], [False, True, True]])
ALL = torch.ones(2, 3, dtype=torch.bool)
SOME = torch.tensor([[True, False, True], [False, True, False]])


def test_orthogonal_projection_loss():
    positives, negatives = 0.1**2 + 0.5**2 + 0.6**2, 0.1**2 + 0.2**2 + 0.3**2
    assert orthogonal_projection_loss(COSINE, RELEVANT, ALL).item() == pytest.approx((positives + negatives) / 6)
    weighted = orthogonal_projection_loss(COSINE, RELEVANT, ALL, positive_weight=10)
    assert weighted.item() == pytest.approx((10 * positives + negatives) / 33)
    perfect = RELEVANT.double()
    assert orthogonal_projection_loss(perfect, RELEVANT, ALL).item() == 0


def row(scores, positives):
    weights = [math.exp(score / 0.05) for score in scores]
    return -math.log(sum(weights[i] for i in positives) / sum(weights))


def test_multiple_negatives_ranking_loss():
    expected = (row(COSINE[0].tolist(), [0]) + row(COSINE[1].tolist(), [1, 2])) / 2
    assert multiple_negatives_ranking_loss(COSINE, RELEVANT, ALL, 0.05).item() == pytest.approx(expected)


def test_pairs_that_are_not_compared_count_for_nothing():
    expected = (10 * (0.1**2 + 0.5**2) + 0.2**2) / 21
    assert orthogonal_projection_loss(COSINE, RELEVANT, SOME, 10).item() == pytest.approx(expected)
    expected = (row([0.9, -0.2], [0]) + row([0.5], [0])) / 2
    assert multiple_negatives_ranking_loss(COSINE, RELEVANT, SOME, 0.05).item() == pytest.approx(expected)
    for loss in (orthogonal_projection_loss, multiple_negatives_ranking_loss):
        cosine = COSINE.clone().requires_grad_()
        loss(cosine, RELEVANT, SOME).backward()
        assert cosine.grad.isfinite().all()
        assert (cosine.grad[~SOME] == 0).all()


def test_prototype_loss():
    student = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert prototype_loss(student, teacher).item() == pytest.approx((1 - 0.6 + 0) / 2)


def test_alignment_loss():
    rng = np.random.default_rng(0)
    given = [rng.normal(size=(rows, 4)) for rows in (5, 5, 7, 5, 5, 7)]
    c, q, p, tc, tq, tp = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in given)

    def log_softmax(scores):
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))

    student, teacher = log_softmax(q @ c.T / 0.2), log_softmax(tq @ tc.T / 0.2)
    divergence = (np.exp(teacher) * (teacher - student)).sum(axis=1).mean()
    expected = 2 - (c * tc).sum(axis=1).mean() - (q * tq).sum(axis=1).mean() + 0.3 * divergence
    expected += 2 * (1 - (p * tp).sum(axis=1).mean())
    tensors = [torch.from_numpy(each).requires_grad_() for each in given]
    loss = alignment_loss(*tensors, score_weight=0.3, temperature=0.2, piece_weight=2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert alignment_loss(3 * tensors[0], *tensors[1:3], *tensors[:3]).item() == pytest.approx(0, abs=1e-12)
    none = torch.zeros(0, 4, dtype=torch.float64)
    without = alignment_loss(*tensors[:2], none, *tensors[3:5], none, score_weight=0.3, temperature=0.2)
    assert without.item() == pytest.approx(expected - 2 * (1 - (p * tp).sum(axis=1).mean()), rel=1e-12)
    zero = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    (loss + alignment_loss(tensors[0], zero, *tensors[2:])).backward()
    for each in (tensors[0], tensors[1], zero):
        assert each.grad.isfinite().all()


def test_cosines_ignore_length():
    queries, documents = torch.randn(2, 5), torch.randn(3, 5)
    expected = torch.cosine_similarity(queries[:, None], documents[None], dim=-1)
    assert torch.allclose(cosine_matrix(3 * queries, 0.1 * documents), expected, atol=1e-6)
