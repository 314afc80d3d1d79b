"""Dimension mixer: block-diagonal (Monarch) matrices and the gated feed-forward network built on them."""

import torch
from torch import Tensor, nn

from .m2bert_ops import block_diagonal_glu


class BlockDiagonalLinear(nn.Module):
    """Parameters of a linear layer whose matrix is block diagonal: output chunk j = weight_j input chunk j, weight
    (num_blocks, out / num_blocks, in / num_blocks)."""

    def __init__(self, in_features: int, out_features: int, num_blocks: int, bias: bool = True):
        super().__init__()
        shape = (num_blocks, out_features // num_blocks, in_features // num_blocks)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """The weight, for an input that it does not depend on: adapters of peft change a module's weight only while the
        module is called, with an input."""
        return self.weight


class M2BertMLP(nn.Module):
    """Gated feed-forward network: down(gelu(gate) * value), [gate | value] = up(x). Exact GELU.

    With four blocks the gate is made from the first half of the channels and the value from the second half, so
    their product is where channel groups meet.
    """

    def __init__(self, config):
        super().__init__()
        self.up = BlockDiagonalLinear(config.hidden_size, 2 * config.intermediate_size, config.num_blocks, bias=False)
        self.down = BlockDiagonalLinear(config.intermediate_size, config.hidden_size, config.num_blocks)
        self.dropout = config.hidden_dropout_prob

    def forward(self, x: Tensor) -> Tensor:
        """(T, H) -> (T, H)."""
        return block_diagonal_glu(x, self.up(x), self.down(x), self.down.bias, self.dropout if self.training else 0.0)
