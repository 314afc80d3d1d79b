"""Parameters of implicit long filters: a small sine network maps the position of a tap to its value in every channel.

The filter at tap t is MLP(z_t) * exp(-time_t * decay_c), with z_t the positional features (m2bert_ops_filter). Both
directions share features, time, decay and frequencies; their weights are stacked in a leading dimension of 2 (0
forward, 1 reverse). All tensors belong to one module, so that this module alone decides their precision.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .m2bert_ops_filter import FilterParameters

# The share of the decay length after which the fastest and the slowest channel have fallen to 1 %.
FASTEST_DECAY_SHARE = 0.3
SLOWEST_DECAY_SHARE = 1.5


def positional_features(num_positions: int, size: int) -> Tensor:
    """Return the initial features z (num_positions, size) in float32.

    z_t = [t / (N - 1), cos(f w_t) .., -sin(f w_t) ..] with N = num_positions and w_t = 2 pi t / N. The (size - 1) / 2
    frequencies f are evenly spaced from 1e-4 upwards.
    """
    bands = (size - 1) // 2
    kwargs = {"device": "cpu", "dtype": torch.float32}
    frequencies = torch.linspace(1e-4, max(bands - 1, 1e-4), bands, **kwargs)
    steps = torch.arange(num_positions, **kwargs)[:, None]
    angles = frequencies * (2 * math.pi * steps / num_positions)
    return torch.cat([steps / max(num_positions - 1, 1), angles.cos(), -angles.sin()], dim=1)


def normalized_time(num_positions: int, decay_length: int) -> Tensor:
    """Return the time of every tap, (num_positions,) float32. It is 0 at tap 0 and 1 at tap decay_length - 1."""
    return torch.arange(num_positions, device="cpu", dtype=torch.float32) / max(decay_length - 1, 1)


class M2BertFilter(nn.Module):
    """One bidirectional filter per channel, and the skip term of its convolution.

    Parameters and buffers stay in float32 when the model is cast to float16 or bfloat16, since rounding them would
    change the filters. A float64 model has float64 filters.
    """

    def __init__(self, config):
        super().__init__()
        order, features = config.filter_order, config.filter_embedding_size
        length, channels = config.max_position_embeddings, config.hidden_size
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)

        def parameter(*shape):
            return nn.Parameter(torch.empty(*shape, dtype=dtype))

        self.positional_features = parameter(length, features)
        self.frequency = parameter(order)
        self.input_weight = parameter(2, order, features)
        self.input_bias = parameter(2, order)
        self.hidden_weight = parameter(2, 2, order, order)  # (layer, direction, out, in)
        self.hidden_bias = parameter(2, 2, order)
        self.output_weight = parameter(2, channels, order)
        self.skip = parameter(channels)
        self.register_buffer("time", torch.empty(length, dtype=dtype))
        self.register_buffer("decay", torch.empty(channels, dtype=dtype))

    def _apply(self, fn, recurse=True):
        def keep_precision(tensor):
            changed = fn(tensor)
            if tensor.is_floating_point() and changed.dtype in (torch.float16, torch.bfloat16):
                changed = tensor.to(device=changed.device, dtype=torch.float32)
            return changed

        return super()._apply(keep_precision, recurse)

    def initialize(self, config):
        """Set the initial values. Channels are ordered by decay, the slowest first."""
        time = normalized_time(config.max_position_embeddings, config.filter_decay_length)
        init.copy_(self.time, time)
        init.copy_(self.positional_features, positional_features(len(time), config.filter_embedding_size))
        slowest, fastest = (-math.log(1e-2) / share for share in (SLOWEST_DECAY_SHARE, FASTEST_DECAY_SHARE))
        init.copy_(self.decay, torch.linspace(slowest, fastest, len(self.decay), device="cpu", dtype=torch.float32))
        init.constant_(self.frequency, config.filter_frequency)
        for weight in (self.input_weight, self.hidden_weight, self.output_weight):
            init.normal_(weight, std=config.initializer_range)
        init.zeros_(self.input_bias)
        init.zeros_(self.hidden_bias)
        init.normal_(self.skip)

    def forward(self, x: Tensor, operation: Callable[[Tensor, nn.Module], Tensor]) -> Tensor:
        """Return operation(x, self). Weights that are offloaded, sharded, pruned or adapted have their values only
        while their module is called."""
        return operation(x, self)

    def parameters_for(self, length: int) -> FilterParameters:
        """Return the parameters that generate the first `length` taps."""
        inputs = self.positional_features[:length], self.frequency, self.input_weight, self.input_bias
        hidden = self.hidden_weight, self.hidden_bias
        return FilterParameters(*inputs, *hidden, self.output_weight, self.time[:length], self.decay)
