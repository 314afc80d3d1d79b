"""The research algorithm as a baseline: what M2-BERT (Saad-Falcon et al., ICML 2024) does in every forward.

Written from its mathematics, and kept as it runs there, without the shortcuts that its algebra allows:
- four filter networks per layer are evaluated anew in each forward, in (L, channels) layout, in float32;
- long convolutions are float32 real FFTs of twice the length, whole rows at once;
- the short convolution is a `conv1d` on a transposed view of (B, L, 3 H);
- the gated feed-forward network writes its full width of 2 I, then slices it;
- padding is visible: there is no mask.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Original(nn.Module):
    """The baseline with copies of the weights of `model`, a `M2BertModel` without `mixer_layer_norm`. Its filters stay
    in float32 when it is cast to half precision."""

    def __init__(self, model):
        super().__init__()
        self.config, self.embeddings, self.layers = model.config, deepcopy(model.embeddings), deepcopy(model.layers)
        self.checkpointing = False  # set it to recompute every layer in backward

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, H)."""
        tables = self.embeddings
        positions = tables.position_embeddings.weight[: input_ids.shape[1]]
        x = tables.word_embeddings(input_ids) + tables.token_type_embeddings.weight[0] + positions
        x = nn.LayerNorm.forward(tables.norm, x)
        for layer in self.layers:
            x = (
                checkpoint(layer_forward, layer, x, use_reentrant=False)
                if self.checkpointing
                else layer_forward(layer, x)
            )
        return x


def layer_forward(layer, x: Tensor) -> Tensor:
    """y = mixer(x); LayerNorm(y + MLP(y)). (B, L, H) -> (B, L, H)."""
    y = mix(layer.mixer, x)
    gate, value = block_diagonal(y, layer.mlp.up.weight).chunk(2, dim=-1)
    return nn.LayerNorm.forward(
        layer.norm, y + (block_diagonal(F.gelu(gate) * value, layer.mlp.down.weight) + layer.mlp.down.bias)
    )


def mix(mixer, u: Tensor) -> Tensor:
    """Apply the gated long convolution and the residual one, all per channel. (B, L, H) -> (B, L, H)."""
    length, short = u.shape[1], mixer.short_conv
    projected = F.linear(u, mixer.in_proj.weight, short.input_bias).transpose(1, 2)  # (B, 3 H, L)
    shorted = F.conv1d(projected, short.weight, short.bias, padding=2, groups=len(short.bias))[..., :length]
    x1, x2, v = shorted.chunk(3, dim=1)
    kernel, residual_kernel = (spectrum(*taps(part, slice(length))) for part in (mixer.filter, mixer.residual_filter))
    y = long_conv(v * x1, kernel, mixer.filter.skip) * x2
    y = y + long_conv(u.transpose(1, 2), residual_kernel, mixer.residual_filter.skip)
    return mixer.out_proj(y.transpose(1, 2))


def taps(source, positions: slice) -> list[Tensor]:
    """Return taps (H, L) of lags 0, 1, .. and of lags -1, -2, .. of a `M2BertFilter`, L the number of `positions`:
    MLP(z_t) * exp(-t * decay), sines of a shared frequency between."""
    window = torch.exp(-source.time[positions, None] * source.decay)  # (L, H)
    found = []
    for way in (0, 1):
        hidden = zip(source.hidden_weight[:, way], source.hidden_bias[:, way], strict=True)
        x = source.positional_features[positions]
        for weight, bias in [(source.input_weight[way], source.input_bias[way]), *hidden]:
            x = torch.sin(source.frequency * F.linear(x, weight, bias))
        found.append((F.linear(x, source.output_weight[way]) * window).T)
    return found


def spectrum(forward: Tensor, reverse: Tensor) -> Tensor:
    """Return (H, L + 1) complex, the real DFT of length 2 L of taps [h_0 .. h_(L-1), r_(L-1) .. r_0]."""
    return torch.fft.rfft(torch.cat([forward, reverse.flip(-1)], dim=-1))


def long_conv(x: Tensor, kernel: Tensor, skip: Tensor) -> Tensor:
    """Convolve x (B, H, L) circularly over 2 L positions with the filter of a spectrum, and add skip * x."""
    signal, n = x.to(skip.dtype), 2 * x.shape[-1]
    y = torch.fft.irfft(torch.fft.rfft(signal, n=n) * kernel, n=n)[..., : x.shape[-1]]
    return (y + signal * skip[:, None]).to(x.dtype)


def block_diagonal(x: Tensor, weight: Tensor) -> Tensor:
    """x (.., K * in), weight (K, out, in) -> (.., K * out)."""
    blocks, _, width = weight.shape
    chunks = x.reshape(-1, blocks, width).transpose(0, 1)
    return torch.bmm(chunks, weight.transpose(1, 2)).transpose(0, 1).reshape(*x.shape[:-1], -1)
