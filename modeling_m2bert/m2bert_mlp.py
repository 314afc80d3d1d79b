"""Dimension mixer: block-diagonal (Monarch) matrices and the gated feed-forward network built on them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .m2bert_ops import block_diagonal_glu


class BlockDiagonalLinear(nn.Module):
    """Parameters of a linear layer whose matrix is block diagonal: output chunk j = weight_j input chunk j, weight
    (num_blocks, out / num_blocks, in / num_blocks). One operation reads the parameters of two such layers."""

    def __init__(self, in_features: int, out_features: int, num_blocks: int, bias: bool = True):
        super().__init__()
        shape = (num_blocks, out_features // num_blocks, in_features // num_blocks)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor, operation: Callable[[Tensor, nn.Module], Tensor]) -> Tensor:
        """Return operation(x, self). Weights that are offloaded, sharded, pruned or adapted are there, and right, only
        while their module is called."""
        return operation(x, self)


class M2BertMLP(nn.Module):
    """Gated feed-forward network: down(gelu(gate) * value), [gate | value] = up(x). Exact GELU.

    With four blocks the gate is made from the first half of the channels and the value from the second half, so
    their product is where channel groups meet.
    """

    def __init__(self, config):
        super().__init__()
        self.up = BlockDiagonalLinear(config.hidden_size, 2 * config.intermediate_size, config.num_blocks, bias=False)
        self.down = BlockDiagonalLinear(config.intermediate_size, config.hidden_size, config.num_blocks)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)  # not called: the operation drops, by its probability

    def forward(self, x: Tensor) -> Tensor:
        """(T, H) -> (T, H)."""
        drops = self.dropout.training and not isinstance(self.dropout, nn.Identity)  # as some put in its place
        dropout = self.dropout.p if drops else 0.0

        def glu(x: Tensor, up: BlockDiagonalLinear, down: BlockDiagonalLinear) -> Tensor:
            return block_diagonal_glu(x, up.weight, down.weight, down.bias, dropout)

        return self.up(x, lambda x, up: self.down(x, lambda x, down: glu(x, up, down)))
