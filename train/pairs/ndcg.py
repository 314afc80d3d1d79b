"""nDCG@k in torch, for choosing checkpoints where pytrec_eval is not installed. Tests hold it equal to the metric."""

import torch
from torch import Tensor


def ndcg_at_k(scores: Tensor, relevance: Tensor, pids: list[str], k: int = 10) -> Tensor:
    """nDCG@k of each query as trec_eval defines it: linear gain, discount log2(rank + 1), equal scores (as 32-bit
    floats) by descending document id.

    Args:
        scores: (Q, D), higher is better.
        relevance: (Q, D), bool or not negative.
        pids: D document ids.

    Returns:
        (Q,) float64, 0 to 1; 0 for a query without a relevant document.

    Raises:
        ValueError: k < 1, or a score is NaN.
    """
    if k < 1:
        raise ValueError(f"k={k} is no cut-off; k must be at least 1")
    if scores.isnan().any():
        query, document = scores.isnan().nonzero()[0].tolist()
        raise ValueError(f"the score of document {pids[document]!r} for query {query} is NaN; the model is broken")
    by_id = sorted(range(len(pids)), key=pids.__getitem__, reverse=True)
    gains = relevance[:, by_id].double()
    order = scores[:, by_id].float().argsort(dim=1, descending=True, stable=True)  # ties stay in the order of ids
    discounts = torch.arange(2, k + 2, dtype=torch.float64, device=scores.device).log2()
    gained = discounted(gains.gather(1, order), discounts)
    possible = discounted(gains.sort(dim=1, descending=True).values, discounts)
    return torch.where(possible > 0, gained / possible.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def discounted(gains: Tensor, discounts: Tensor) -> Tensor:
    """Sum of the first gains of each row, (Q, D) in rank order, each over its discount (k,): (Q,)."""
    top = gains[:, : len(discounts)]
    return (top / discounts[: top.shape[1]]).sum(dim=1)
