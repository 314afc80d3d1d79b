"""Losses for retrieval, and `make_objective`, which returns the one that a configuration names.

A batch has Q queries and D documents. Losses on cosines take three matrices:

    cosine: (Q, D) float, in [-1, 1].
    relevant: (Q, D) bool, True where document d answers query q.
    compared: (Q, D) bool, True where the pair enters the loss. The configuration key `data.form` selects these pairs.
        With `pairs` it is the diagonal: query i and document i. With `grouped` it is each query with its own documents.
        With `all` it is every pair. In steps with passages (`data.passage_share`) it is every pair, whatever
        the form.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def orthogonal_projection_loss(
    cosine: Tensor, relevant: Tensor, compared: Tensor, positive_weight: float = 1.0
) -> Tensor:
    """Return the orthogonal projection loss (paper section 4.3): it pulls relevant pairs to cosine 1, all others to 0.

        (sum_{compared pairs} w * (cosine - label)^2) / (sum_{compared pairs} w),
        label = 1 and w = positive_weight if relevant, else label = 0 and w = 1

    Every pair has a term of its own, so the loss needs no large batch. positive_weight=1 is the paper's mean squared
    error. If positive_weight is the number of negatives of a query, a positive weighs as much as all these negatives.
    """
    weights = torch.where(relevant, positive_weight, 1.0).to(cosine.dtype) * compared
    return (weights * (cosine - relevant.to(cosine.dtype)) ** 2).sum() / weights.sum()


def multiple_negatives_ranking_loss(
    cosine: Tensor, relevant: Tensor, compared: Tensor, temperature: float = 0.05
) -> Tensor:
    """Return the multiple negatives ranking loss (paper section 4.3; Henderson et al., 2017): of all documents that a
    query is compared with, the relevant ones should be nearest.

        mean over queries of -log(sum_{d relevant and compared} exp(cosine / T) / sum_{d compared} exp(cosine / T))

    Every query needs a relevant document among the compared ones; without one the loss is infinite.
    """
    logits = (cosine / temperature).masked_fill(~compared, -torch.inf)
    positives = logits.masked_fill(~relevant, -torch.inf)
    return (logits.logsumexp(dim=1) - positives.logsumexp(dim=1)).mean()


def prototype_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the prototype loss of one side, queries or passages (paper section 4.3; Li et al., 2021): the student's
    vectors turn toward the teacher's.

        mean over texts of 1 - cosine(student, teacher)

    The paper maximizes a quantity PL, the sum of the cosines of both sides. This loss is a mean over the N texts of one
    side. So its gradient with respect to the student's vectors of this side is the gradient of PL times -1 / N.

    Args:
        student, teacher: (N, W), vectors of the same N texts in the same order.
    """
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


def alignment_loss(
    chunks: Tensor,
    queries: Tensor,
    pieces: Tensor,
    teacher_chunks: Tensor,
    teacher_queries: Tensor,
    teacher_pieces: Tensor,
    score_weight: float = 0.1,
    temperature: float = 0.05,
    piece_weight: float = 4.0,
) -> Tensor:
    """Return the alignment loss: a student's vectors of stretches, of spans and of pieces of stretches turn toward a
    teacher's, and rank as the teacher's do.

        mean(1 - cos(chunk, teacher's)) + mean(1 - cos(query, teacher's)) + score_weight * KL(teacher's || student's)
        + piece_weight * mean(1 - cos(piece, teacher's))

    The divergence is between the softmax of cosine / temperature over all stretches of the batch, averaged over spans.

    Args:
        chunks, queries: (N, W), vectors of stretches, and of a span out of each.
        pieces: (P, W), vectors of pieces; P may be 0.
        teacher_chunks, teacher_queries, teacher_pieces: the teacher's vectors of these, of the same shapes.
    """
    loss = prototype_loss(chunks, teacher_chunks) + prototype_loss(queries, teacher_queries)
    if len(pieces):
        loss = loss + piece_weight * prototype_loss(pieces, teacher_pieces)
    scores = [cosine_matrix(q, c) / temperature for q, c in ((queries, chunks), (teacher_queries, teacher_chunks))]
    student, teacher = (score.log_softmax(dim=1) for score in scores)
    return loss + score_weight * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def cosine_matrix(queries: Tensor, documents: Tensor) -> Tensor:
    """Return the cosines of all pairs: (Q, W) and (D, W) -> (Q, D)."""
    return F.normalize(queries, dim=-1) @ F.normalize(documents, dim=-1).T


def make_objective(settings, teacher: tuple[Tensor, Tensor] | None = None) -> Callable[[dict, Tensor, Tensor], Tensor]:
    """Return the loss that the configuration names, as a function of a batch and its vectors.

    The function maps (batch, query vectors (Q, W), document vectors (D, W)) to a scalar. `PairBatches.batch` describes
    the batch.

    Args:
        settings: the configuration's section `loss`. `name` is `opl` (orthogonal projection loss), `mnrl` (multiple
            negatives ranking loss) or `prototype`. `opl` reads `positive_weight`, and `mnrl` reads `temperature`.
        teacher: for `prototype`, the teacher's vectors of all queries and of all documents of the training data. The
            batch's query_ids and document_ids index them.
    """

    def objective(batch, queries, documents):
        if settings.name == "prototype":
            teacher_queries, teacher_documents = teacher
            query_loss = prototype_loss(queries, teacher_queries[batch["query_ids"]].to(queries))
            return query_loss + prototype_loss(documents, teacher_documents[batch["document_ids"]].to(documents))
        relevant, compared = (batch[key].to(queries.device) for key in ("relevant", "compared"))
        cosine = cosine_matrix(queries, documents)
        if settings.name == "opl":
            return orthogonal_projection_loss(cosine, relevant, compared, settings.positive_weight)
        assert settings.name == "mnrl"  # the settings allow no other
        return multiple_negatives_ranking_loss(cosine, relevant, compared, settings.temperature)

    return objective
