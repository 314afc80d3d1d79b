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
    """Depthwise causal convolution with three taps, and the first gate. Its weight is (channels, 1, 3), its bias
    (channels,). Its input first receives a bias of its own (channels,): the projection's, which must not reach the
    zeros before a row."""

    def __init__(self, channels: int):
        super().__init__()
        self.input_bias = nn.Parameter(torch.empty(channels))
        self.weight = nn.Parameter(torch.empty(channels, 1, 3))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, projected: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return v * x1 and x2, both (H, T), of projected (3H, T)."""
        return short_conv_gate(projected, self.input_bias, self.weight.squeeze(1), self.bias, *rows)


class ChannelLinear(nn.Linear):
    """Linear layer without bias whose output (T, out) lies in memory as the channels (out, T) that the next operation
    reads."""

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        if is_dense(self.weight):
            return (self.weight @ x.T).T
        return nn.functional.linear(x.contiguous(), self.weight)


def contiguous_rows(x: Tensor, linear: nn.Module) -> Tensor:
    """Return x (T, in) in a layout that a linear layer reads. A dense layer of torch reads any strides without a copy.
    Layers that replace or wrap it, such as quantized ones, are right on contiguous rows only."""
    dense = type(linear) in (nn.Linear, ChannelLinear) and is_dense(linear.weight)
    return x if dense else x.contiguous()


def is_dense(weight: Tensor) -> bool:
    """Return whether a weight is a plain tensor; of others, such as quantized ones, only `linear` is sure to work."""
    return type(weight) in (Tensor, nn.Parameter)


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
        gated, gate = self.short_conv(self.in_proj(contiguous_rows(hidden_states, self.in_proj)).T, rows)
        if self.residual_filter is None:
            mixed = self.filter(gated, lambda x, own: self._long_conv(x, gate, None, rows, own))
        else:
            residual = hidden_states.T.to(gated.dtype)
            mixed = self.filter(
                gated,
                lambda x, own: self.residual_filter(
                    x, lambda x, other: self._long_conv(x, gate, residual, rows, own, other)
                ),
            )
        return self.out_proj(contiguous_rows(mixed.T, self.out_proj))

    def _long_conv(
        self, gated: Tensor, gate: Tensor, residual: Tensor | None, rows: Rows, *filters: M2BertFilter
    ) -> Tensor:
        missing = [None] * (2 - len(filters))
        skips = [module.skip for module in filters] + missing
        if torch.is_grad_enabled() or self.training:
            if not torch.compiler.is_compiling():
                self.cache.clear()  # an update may follow that no version tells, as of sharded parameters
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
