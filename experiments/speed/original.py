"""The research algorithm as a baseline: what M2-BERT (Saad-Falcon et al., ICML 2024) does in every forward.

Written from its mathematics, and kept as it runs there, without the shortcuts that its algebra allows:
- four filter networks per layer are evaluated anew in each forward, in (L, channels) layout, in float32;
- long convolutions are float32 real FFTs of twice the length, whole rows at once;
- the short convolution is `nn.Conv1d` on a transposed view of (B, L, 3 H);
- the gated feed-forward network writes its full width of 2 I, then slices it;
- padding is visible: there is no mask.

Its weights are copied from a `M2BertModel`, so that both must give the same hidden states on rows without padding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Filter(nn.Module):
    """Both directions of one implicit filter: MLP(z_t) * exp(-t * decay), sines of a shared frequency between."""

    def __init__(self, source):
        super().__init__()
        self.features = nn.Parameter(source.positional_features.detach().clone())
        self.frequency = nn.Parameter(source.frequency.detach().clone())
        self.skip = nn.Parameter(source.skip.detach().clone())
        self.register_buffer("time", source.time.detach().clone())
        self.register_buffer("decay", source.decay.detach().clone())
        self.networks = nn.ModuleList(self._network(source, direction) for direction in (0, 1))

    @staticmethod
    def _network(source, direction: int) -> nn.ModuleList:
        hidden = zip(source.hidden_weight[:, direction], source.hidden_bias[:, direction], strict=True)
        layers = [(source.input_weight[direction], source.input_bias[direction]), *hidden]
        return nn.ModuleList(linear(*layer) for layer in [*layers, (source.output_weight[direction], None)])

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """Taps (H, L) of lags 0, 1, .. and of lags -1, -2, .."""
        window = torch.exp(-self.time[:length, None] * self.decay)  # (L, H)
        taps = []
        for network in self.networks:
            x = self.features[:length]
            for layer in network[:-1]:
                x = torch.sin(self.frequency * layer(x))
            taps.append((network[-1](x) * window).T)
        return tuple(taps)


class Mixer(nn.Module):
    """Gated bidirectional long convolution with a residual one; every convolution per channel."""

    def __init__(self, source):
        super().__init__()
        self.in_proj = linear(source.in_proj.weight, source.short_conv.input_bias)
        channels = source.short_conv.weight.shape[0]
        self.short_conv = nn.Conv1d(channels, channels, kernel_size=3, padding=2, groups=channels)
        with torch.no_grad():
            self.short_conv.weight.copy_(source.short_conv.weight.reshape(channels, 1, 3))
            self.short_conv.bias.copy_(source.short_conv.bias)
        self.filter = Filter(source.filter)
        self.residual_filter = Filter(source.residual_filter)
        self.out_proj = linear(source.out_proj.weight, source.out_proj.bias)

    def forward(self, u: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        length = u.shape[1]
        shorted = self.short_conv(self.in_proj(u).transpose(1, 2))[..., :length]  # (B, 3 H, L)
        x1, x2, v = shorted.chunk(3, dim=1)
        y = long_conv(v * x1, *self.filter(length), self.filter.skip) * x2
        y = y + long_conv(u.transpose(1, 2), *self.residual_filter(length), self.residual_filter.skip)
        return self.out_proj(y.transpose(1, 2))


class FeedForward(nn.Module):
    """Block-diagonal gated feed-forward network, unfused."""

    def __init__(self, source):
        super().__init__()
        self.up = nn.Parameter(source.up.weight.detach().clone())
        self.down = nn.Parameter(source.down.weight.detach().clone())
        self.bias = nn.Parameter(source.down.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        wide = block_diagonal(x, self.up)  # (B, L, 2 I)
        half = wide.shape[-1] // 2
        return block_diagonal(F.gelu(wide[..., :half]) * wide[..., half:], self.down) + self.bias


class Layer(nn.Module):
    """y = mixer(x); LayerNorm(y + MLP(y))."""

    def __init__(self, source):
        super().__init__()
        self.mixer = Mixer(source.mixer)
        self.mlp = FeedForward(source.mlp)
        self.norm = layer_norm(source.norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(x)
        return self.norm(y + self.mlp(y))


class Original(nn.Module):
    """The baseline with the weights of `model`, a `M2BertModel` without `mixer_layer_norm`."""

    def __init__(self, model):
        super().__init__()
        source = model.embeddings
        self.word_embeddings = nn.Embedding.from_pretrained(
            source.word_embeddings.weight.detach().clone(), freeze=False
        )
        self.position_embeddings = nn.Parameter(source.position_embeddings.weight.detach().clone())
        self.type_embeddings = nn.Parameter(source.token_type_embeddings.weight.detach().clone())
        self.norm = layer_norm(source.norm)
        self.layers = nn.ModuleList(Layer(layer) for layer in model.layers)
        self.checkpointing = False  # set it to recompute every layer in backward

    def cast(self, dtype: torch.dtype) -> "Original":
        """Weights and activations in `dtype`; filters and FFTs stay in float32 for half precision."""
        self.to(dtype)
        if dtype in (torch.float16, torch.bfloat16):
            for module in self.modules():
                if isinstance(module, Filter):
                    module.to(torch.float32)
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, H)."""
        x = self.word_embeddings(input_ids) + self.type_embeddings[0] + self.position_embeddings[: input_ids.shape[1]]
        x = self.norm(x)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointing else layer(x)
        return x


def long_conv(x: Tensor, taps: Tensor, reverse_taps: Tensor, skip: Tensor) -> Tensor:
    """x (B, H, L) convolved circularly over 2 L positions with [h_0 .. h_(L-1), r_(L-1) .. r_0], plus skip * x."""
    n = 2 * x.shape[-1]
    signal = x.to(taps.dtype)
    kernel = torch.fft.rfft(torch.cat([taps, reverse_taps.flip(-1)], dim=-1))
    y = torch.fft.irfft(torch.fft.rfft(signal, n=n) * kernel, n=n)[..., : x.shape[-1]]
    return (y + signal * skip[:, None]).to(x.dtype)


def block_diagonal(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, L, K * in), weight (K, out, in) -> (B, L, K * out)."""
    blocks, _, width = weight.shape
    chunks = x.reshape(-1, blocks, width).transpose(0, 1)
    return torch.bmm(chunks, weight.transpose(1, 2)).transpose(0, 1).reshape(*x.shape[:-1], -1)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer that owns copies of `weight` (out, in) and `bias` (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def layer_norm(source: nn.LayerNorm) -> nn.LayerNorm:
    """A LayerNorm that owns copies of the weights of `source`."""
    layer = nn.LayerNorm(source.normalized_shape, eps=source.eps, device="meta")
    layer.weight = nn.Parameter(source.weight.detach().clone())
    layer.bias = nn.Parameter(source.bias.detach().clone())
    return layer
