"""The loss of a configuration, as a function of a batch and the vectors of all its texts."""

from collections.abc import Callable

from torch import Tensor

from .losses import cosine_matrix, multiple_negatives_ranking_loss, orthogonal_projection_loss, prototype_loss

LOSSES = ("opl", "mnrl", "prototype")


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


def check_loss(config):
    """Raise ValueError for a loss that does not go with the form of the batches."""
    name, data = config.loss.name, config.data
    if name not in LOSSES:
        raise ValueError(f"loss.name={name!r} is unknown; choose {', '.join(LOSSES[:-1])} or {LOSSES[-1]}")
    if name == "mnrl" and data.form == "pairs":
        raise ValueError("loss.name=mnrl compares documents of one query; set data.form=all or grouped")
    if name != "prototype":
        return
    if config.loss.teacher is None:
        raise ValueError("loss.name=prototype needs loss.teacher, a sentence-transformers model")
    if data.document_window != "first" or data.passage_share or data.query_dropout:
        raise ValueError(
            "loss.name=prototype imitates vectors of whole texts; set data.document_window=first, data.passage_share=0 "
            "and data.query_dropout=false"
        )
