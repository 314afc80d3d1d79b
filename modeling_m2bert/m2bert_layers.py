"""The two halves of a layer: the sequence mixer (paper section 3, figure 1), in place of attention, and the gated
feed-forward network of block-diagonal (Monarch) matrices.

    [x1 | x2 | v] = short_conv(in_proj(u));  y = long_conv(v * x1) * x2 + long_conv(u);  mixed = out_proj(y)
    [gate | value] = up(mixed);  output = down(gelu(gate) * value)

Convolutions take and return (C, T), where the samples of a channel are adjacent. The projections read and write that
layout without a copy. No row depends on another row, and no real position depends on padding.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .m2bert_filter import M2BertFilter
from .m2bert_ops import block_diagonal_glu, cached_long_conv, long_conv, short_conv_gate
from .m2bert_ops_filter import FilterCache, implicit_filters
from .m2bert_ops_product import linear
from .m2bert_packing import Rows

MIXER_LAYER_NORM_EPS = 1e-5  # as the checkpoints with this norm were trained


class ShortConv(nn.Module):
    """Depthwise causal convolution with three taps, and the first gate.

    Its weight is (channels, 1, 3), its bias (channels,). Its `input_bias` (channels,) is the bias of the projection
    before it. It is added here, because it must not be added to the zeros before the start of a row.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.input_bias = nn.Parameter(torch.empty(channels))
        self.weight = nn.Parameter(torch.empty(channels, 1, 3))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, projected: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Convolve projected (3H, T) and return v * x1 and x2, both (H, T)."""
        return short_conv_gate(projected, self.input_bias, self.weight.squeeze(1), self.bias, *rows)


class ChannelLinear(nn.Linear):
    """Linear layer without bias whose output (T, out) lies in memory as the channels (out, T) that the next operation
    reads."""

    def forward(self, x: Tensor) -> Tensor:
        """Project (T, in) -> (T, out)."""
        if is_dense(self.weight):
            return linear(self.weight, x).T
        return nn.functional.linear(x.contiguous(), self.weight)


class TokenLinear(nn.Linear):
    """Linear layer, with the fastest product for its device."""

    def forward(self, x: Tensor) -> Tensor:
        """Project (T, in) -> (T, out)."""
        if is_dense(self.weight):
            return linear(x, self.weight, self.bias)
        return super().forward(x)


class WideLayerNorm(nn.LayerNorm):
    """LayerNorm, computed in float32 at least.

    From half precision, torch would add up the gradients of weight and bias in half precision on a CPU. A sum of ones
    in bfloat16 ends at 256.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., H) over the last dimension, in x's dtype."""
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return nn.functional.layer_norm(x.to(wide), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def contiguous_rows(x: Tensor, linear: nn.Module) -> Tensor:
    """Return x (T, in) in a layout that a linear layer reads.

    A dense layer of torch reads any strides without a copy. Layers that replace or wrap it, such as quantized ones,
    compute right results only from contiguous rows.
    """
    dense = type(linear) in (nn.Linear, ChannelLinear, TokenLinear) and is_dense(linear.weight)
    return x if dense else x.contiguous()


def is_dense(weight: Tensor) -> bool:
    """Return whether a weight is a plain tensor. For others, such as quantized ones, `linear` is the only operation
    that is sure to work."""
    return type(weight) in (Tensor, nn.Parameter)


def is_quantized(config) -> bool:
    """Return whether a model of this configuration is about to be quantized, or comes from quantized weights."""
    return getattr(config, "quantization_config", None) is not None


class M2BertMixer(nn.Module):
    """Sequence mixer. The only skip from input to output is the residual long convolution."""

    def __init__(self, config, cache: FilterCache | None = None):
        super().__init__()
        hidden = config.hidden_size
        self.norm = WideLayerNorm(hidden, eps=MIXER_LAYER_NORM_EPS) if config.mixer_layer_norm else None
        plain = is_quantized(config)  # bitsandbytes replaces no subclass of nn.Linear
        self.in_proj = (nn.Linear if plain else ChannelLinear)(hidden, 3 * hidden, bias=False)
        self.short_conv = ShortConv(3 * hidden)
        self.filter = M2BertFilter(config)
        self.residual_filter = M2BertFilter(config) if config.residual_long_conv else None
        self.out_proj = (nn.Linear if plain else TokenLinear)(hidden, hidden)
        self.cache = cache or FilterCache(num_layers=1)

    def forward(self, hidden_states: Tensor, rows: Rows) -> Tensor:
        """Mix (T, H) -> (T, H). Padded positions, if there are any, get out_proj's bias."""
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        gated, gate = self.short_conv(self.in_proj(contiguous_rows(hidden_states, self.in_proj)).T, rows)
        if self.residual_filter is None:
            mixed = self.filter(gated, lambda gated, main: self._long_conv(gated, gate, None, rows, main))
        else:
            residual = hidden_states.T.to(gated.dtype)

            def convolve_both(gated: Tensor, main: M2BertFilter) -> Tensor:
                return self.residual_filter(
                    gated, lambda gated, second: self._long_conv(gated, gate, residual, rows, main, second)
                )

            mixed = self.filter(gated, convolve_both)
        return self.out_proj(contiguous_rows(mixed.T, self.out_proj))

    def _long_conv(
        self, gated: Tensor, gate: Tensor, residual: Tensor | None, rows: Rows, *filters: M2BertFilter
    ) -> Tensor:
        """Convolve with one filter, or with two if there is a residual. Without gradients the filters are cached."""
        missing = [None] * (2 - len(filters))
        skips = [module.skip for module in filters] + missing
        if torch.is_grad_enabled() or self.training:
            if not torch.compiler.is_compiling():
                self.cache.clear()  # the next update may raise no version, as with sharded parameters
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


class BlockDiagonalLinear(nn.Module):
    """Parameters of a linear layer whose matrix is block diagonal: output chunk j = weight_j input chunk j.

    The weight is (num_blocks, out / num_blocks, in / num_blocks). The layer does not multiply by itself, since one
    operation of M2BertMLP reads the parameters of both its layers.
    """

    def __init__(self, in_features: int, out_features: int, num_blocks: int, bias: bool = True):
        super().__init__()
        shape = (num_blocks, out_features // num_blocks, in_features // num_blocks)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor, operation: Callable[[Tensor, nn.Module], Tensor]) -> Tensor:
        """Return operation(x, self). Weights that are offloaded, sharded, pruned or adapted have their values only
        while their module is called."""
        return operation(x, self)


class M2BertMLP(nn.Module):
    """Gated feed-forward network: down(gelu(gate) * value), [gate | value] = up(x), with the exact GELU.

    If the number of blocks is even, the gate depends on the first half of the channels only, and the value on the
    second half. Only their product combines channels of different blocks.
    """

    def __init__(self, config):
        super().__init__()
        self.up = BlockDiagonalLinear(config.hidden_size, 2 * config.intermediate_size, config.num_blocks, bias=False)
        self.down = BlockDiagonalLinear(config.intermediate_size, config.hidden_size, config.num_blocks)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)  # never called: it only holds the probability

    def forward(self, x: Tensor) -> Tensor:
        """Map (T, H) -> (T, H)."""
        # Some users replace a dropout by nn.Identity, which has no probability.
        is_active = self.dropout.training and not isinstance(self.dropout, nn.Identity)
        dropout = self.dropout.p if is_active else 0.0

        def glu(x: Tensor, up: BlockDiagonalLinear, down: BlockDiagonalLinear) -> Tensor:
            return block_diagonal_glu(x, up.weight, down.weight, down.bias, dropout)

        return self.up(x, lambda x, up: self.down(x, lambda x, down: glu(x, up, down)))
