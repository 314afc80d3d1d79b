"""The loss of a configuration, as a function of a batch and the vectors of all its texts."""

from collections.abc import Callable

from torch import Tensor

from .losses import cosine_matrix, multiple_negatives_ranking_loss, orthogonal_projection_loss, prototype_loss


def make_objective(settings, teacher: tuple[Tensor, Tensor] | None = None) -> Callable[[dict, Tensor, Tensor], Tensor]:
    """(batch of PairBatches, query vectors (Q, W), document vectors (D, W)) -> loss.

    Args:
        settings: name, positive_weight (opl), temperature (mnrl).
        teacher: vectors of all queries and of all documents (prototype).
    """

    def on_cosines(loss, *arguments):
        def objective(batch, queries, documents):
            relevant, compared = (batch[key].to(queries.device) for key in ("relevant", "compared"))
            return loss(cosine_matrix(queries, documents), relevant, compared, *arguments)

        return objective

    def prototype(batch, queries, documents):
        query_targets, document_targets = (
            vectors[batch[ids]].to(queries) for vectors, ids in zip(teacher, ("query_ids", "document_ids"), strict=True)
        )
        return prototype_loss(queries, query_targets) + prototype_loss(documents, document_targets)

    if settings.name == "opl":
        return on_cosines(orthogonal_projection_loss, settings.positive_weight)
    if settings.name == "mnrl":
        return on_cosines(multiple_negatives_ranking_loss, settings.temperature)
    return prototype
