"""Sequence mixer: gated bidirectional long convolution (paper section 3, figure 1), in place of attention.

    [x1 | x2 | v] = short_conv(in_proj(u));  y = long_conv(v * x1) * x2 + long_conv(u);  output = out_proj(y)

Convolutions run over channels, (C, T); projections read and write that layout by themselves. Nothing crosses from one
row to another, and nothing of the padding reaches a real position.
"""

import torch
from torch import Tensor, nn

from .m2bert_filter import M2BertFilter
from .m2bert_ops import cached_long_conv, long_conv, short_conv_gate
from .m2bert_ops_filter import FilterCache, implicit_filters
from .m2bert_rows import Rows

MIXER_LAYER_NORM_EPS = 1e-5  # of the checkpoints that have this norm


class ShortConv(nn.Module):
    """Parameters of a depthwise causal convolution with three taps: weight (channels, 1, 3), bias (channels,), and the
    bias (channels,) that its input receives first: the projection's, which must not reach the zeros before a row."""

    def __init__(self, channels: int):
        super().__init__()
        self.input_bias = nn.Parameter(torch.empty(channels))
        self.weight = nn.Parameter(torch.empty(channels, 1, 3))
        self.bias = nn.Parameter(torch.empty(channels))


class ChannelLinear(nn.Linear):
    """Linear layer without bias whose output (T, out) lies in memory as the channels (out, T) that the next operation
    reads."""

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        return (self.weight @ x.T).T


class M2BertMixer(nn.Module):
    """Mixes along the sequence; the only skip from input to output is the residual long convolution."""

    def __init__(self, config, cache: FilterCache | None = None):
        super().__init__()
        hidden = config.hidden_size
        self.norm = nn.LayerNorm(hidden, eps=MIXER_LAYER_NORM_EPS) if config.mixer_layer_norm else None
        self.in_proj = ChannelLinear(hidden, 3 * hidden, bias=False)
        self.short_conv = ShortConv(3 * hidden)
        self.filter = M2BertFilter(config)
        self.residual_filter = M2BertFilter(config) if config.residual_long_conv else None
        self.out_proj = nn.Linear(hidden, hidden)
        self.cache = cache or FilterCache(num_layers=1)

    def forward(self, hidden_states: Tensor, rows: Rows) -> Tensor:
        """(T, H) -> (T, H); padded positions, where there are any, hold out_proj's bias."""
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        short = self.short_conv.input_bias, self.short_conv.weight.squeeze(1), self.short_conv.bias
        gated, gate = short_conv_gate(self.in_proj(hidden_states).T, *short, *rows)
        residual = None if self.residual_filter is None else hidden_states.T.to(gated.dtype)
        return self.out_proj(self._long_conv(gated, gate, residual, rows).T)

    def _long_conv(self, gated: Tensor, gate: Tensor, residual: Tensor | None, rows: Rows) -> Tensor:
        filters = [module for module in (self.filter, self.residual_filter) if module is not None]
        missing = [None] * (2 - len(filters))
        skips = [module.skip for module in filters] + missing
        if torch.is_grad_enabled() or self.training:
            taps = implicit_filters([module.parameters_for(rows.longest) for module in filters])
            return long_conv(gated, gate, residual, *taps, *missing, *skips, *rows)
        sources = [module.parameters_for(len(module.time)) for module in filters]
        cache = [self.cache.handle, self.cache.num_layers]
        return cached_long_conv(gated, gate, residual, *sources, *missing, *skips, *rows, cache)

    def train(self, mode: bool = True):
        if mode:
            self.cache.clear()
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self.cache.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self.cache.clear()
        return super()._load_from_state_dict(*args, **kwargs)
