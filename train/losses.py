"""Losses for retrieval. Each takes the cosine matrix of Q queries and D documents and their relevance.

cosine: (Q, D) float, in [-1, 1].    relevant: (Q, D) bool, True where document d answers query q.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def orthogonal_projection_loss(cosine: Tensor, relevant: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Orthogonal projection loss (paper section 4.3): relevant pairs at cosine 1, all others orthogonal.

        mean over pairs of w (cosine - label)^2,  label 1 and w = positive_weight if relevant, else label 0 and w = 1

    Every pair has a term of its own, so the loss needs no large batch.
    """
    weights = torch.where(relevant, positive_weight, 1.0).to(cosine.dtype)
    return (weights * (cosine - relevant.to(cosine.dtype)) ** 2).sum() / weights.sum()


def multiple_negatives_ranking_loss(cosine: Tensor, relevant: Tensor, temperature: float = 0.05) -> Tensor:
    """Multiple negatives ranking loss (paper section 4.3): every other document of the batch is a negative.

    mean over queries of -log sum_{d relevant} exp(cosine / T) / sum_d exp(cosine / T)
    """
    logits = cosine / temperature
    positives = logits.masked_fill(~relevant, -torch.inf)
    return (logits.logsumexp(dim=1) - positives.logsumexp(dim=1)).mean()


def cosine_matrix(queries: Tensor, documents: Tensor) -> Tensor:
    """Cosines of all pairs: (Q, W) and (D, W) -> (Q, D)."""
    return F.normalize(queries, dim=-1) @ F.normalize(documents, dim=-1).T
