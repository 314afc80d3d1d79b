"""Sequence mixer: gated bidirectional long convolution (paper section 3, figure 1), in place of attention.

    [x1 | x2 | v] = short_conv(in_proj(u));  y = long_conv(v * x1) * x2 + long_conv(u);  output = out_proj(y)

Convolutions run over (B, H, L). Padded positions are set to zero before each of them, so that nothing of the padding
reaches a real position.
"""

import torch
from torch import Tensor, nn

from .m2bert_filter import M2BertFilter
from .m2bert_ops_torch import long_conv, short_conv

MIXER_LAYER_NORM_EPS = 1e-5  # of the checkpoints that have this norm


class ShortConv(nn.Module):
    """Depthwise causal convolution with three taps, weight (channels, 1, 3), bias (channels,)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, 3))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, C, L)."""
        return short_conv(x, self.weight, self.bias)


class M2BertMixer(nn.Module):
    """Mixes along the sequence; the only skip from input to output is the residual long convolution."""

    def __init__(self, config):
        super().__init__()
        hidden = config.hidden_size
        self.norm = nn.LayerNorm(hidden, eps=MIXER_LAYER_NORM_EPS) if config.mixer_layer_norm else None
        self.in_proj = nn.Linear(hidden, 3 * hidden)
        self.short_conv = ShortConv(3 * hidden)
        self.filter = M2BertFilter(config)
        self.residual_filter = M2BertFilter(config) if config.residual_long_conv else None
        self.out_proj = nn.Linear(hidden, hidden)

    def forward(self, hidden_states: Tensor, padding: Tensor | None = None) -> Tensor:
        """
        Args:
            hidden_states: (B, L, H).
            padding: (B, L) bool, True at padded positions; None where there are none or they may be seen.

        Returns:
            (B, L, H). Padded positions hold out_proj's bias; the layer zeroes them.
        """
        length = hidden_states.shape[1]
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        u = _zero(hidden_states.transpose(1, 2), padding)  # (B, H, L)
        projected = _zero(self.in_proj(hidden_states).transpose(1, 2), padding)  # (B, 3H, L)
        x1, x2, v = self.short_conv(projected).chunk(3, dim=1)
        y = long_conv(_zero(v * x1, padding), *self.filter(length), self.filter.skip) * x2
        if self.residual_filter is not None:
            y = y + long_conv(u, *self.residual_filter(length), self.residual_filter.skip)
        return self.out_proj(y.transpose(1, 2))


def _zero(x: Tensor, padding: Tensor | None) -> Tensor:
    """x (B, C, L), contiguous, with exact zeros at padded positions."""
    if padding is None:
        return x.contiguous()
    return x.masked_fill(padding[:, None, :], 0).contiguous()
