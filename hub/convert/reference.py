"""Reference forward of the original model from its own tensors, against which a conversion is checked.

It is written plainly in torch and in float64, under the names of the research code (HazyResearch/m2, folder bert/) and
independent of this package's model. Nothing here is fast; every line is one formula.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .names import DECODER, WORDS, Options

MIXER_LAYER_NORM_EPS = 1e-5  # of `attention.layernorm`


class Tensors:
    """Returns tensors whose names start with a prefix, in float64."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str = ""):
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name].double()

    def first_of(self, names: list[str]) -> Tensor:
        """Return a tensor that has several names, of which a file may keep any."""
        return self[next(name for name in names if self.prefix + name in self.tensors)]

    def within(self, prefix: str) -> "Tensors":
        return Tensors(self.tensors, self.prefix + prefix)

    def layer_norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        weight, bias = self[f"{name}.weight"], self[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"])


@torch.no_grad()
def reference_forward(
    tensors: dict[str, Tensor], options: Options, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
) -> dict[str, Tensor]:
    """Compute the original's outputs.

    Args:
        tensors: under the original's names, without prefixes.
        input_ids, attention_mask, token_type_ids: (B, L) int64.

    Returns:
        In float64: last_hidden_state (B, L, H); with masked-LM tensors logits (B, L, V), otherwise pooler_output
        (B, H).
    """
    bert, eps = Tensors(tensors, "bert."), options.layer_norm_eps
    words = Tensors(tensors).first_of([WORDS, DECODER])
    x = F.embedding(input_ids, words)
    x = x + F.embedding(token_type_ids, bert["embeddings.token_type_embeddings.weight"])
    if options.use_positional_encodings:
        x = x + bert["embeddings.position_embeddings.weight"][: x.shape[1]]
    x = bert.layer_norm(x, "embeddings.LayerNorm", eps)
    for index in range(options.num_hidden_layers):
        layer = bert.within(f"encoder.layer.{index}.")
        y = mixer(x, layer.within("attention."), options)
        x = layer.layer_norm(y + mlp(y, layer.within("mlp.")), "mlp.layernorm", eps)
    if any(name.startswith("cls.") for name in tensors):
        head = Tensors(tensors, "cls.predictions.")
        z = F.gelu(head.linear(x, "transform.dense"))
        z = head.layer_norm(z, "transform.LayerNorm", eps)
        return {"last_hidden_state": x, "logits": F.linear(z, words, head["decoder.bias"])}
    return {"last_hidden_state": x, "pooler_output": pooled(x, attention_mask, bert, options)}


def mixer(u: Tensor, attention: Tensors, options: Options) -> Tensor:
    """Apply the gated long convolution and the residual one. (B, L, H) -> (B, L, H)."""
    if options.hyena_training_additions:
        u = attention.layer_norm(u, "layernorm", MIXER_LAYER_NORM_EPS)
    a = attention.linear(u, "in_linear").transpose(1, 2)  # (B, 3 H, L)
    short = F.pad(a, (2, 0)), attention["short_filter.weight"], attention["short_filter.bias"]
    x1, x2, v = F.conv1d(*short, groups=a.shape[1]).chunk(3, dim=1)
    w_mod = options.hyena_w_mod
    y = long_conv(v * x1, attention.within("filter_fn."), w_mod) * x2
    if options.residual_long_conv:
        y = y + long_conv(u.transpose(1, 2), attention.within("filter_fn2."), w_mod)
    return attention.linear(y.transpose(1, 2), "out_linear")


def long_conv(g: Tensor, filter_fn: Tensors, w_mod: float) -> Tensor:
    """Apply both directions as one circular convolution of length 2 L, and the skip term. (B, H, L) -> (B, H, L)."""
    length = g.shape[-1]
    forward, reverse = (implicit_filter(filter_fn, name, length, w_mod) for name in ("", "_rev"))
    kernel = torch.fft.rfft(torch.cat([forward, reverse.flip(-1)], dim=-1))
    y = torch.fft.irfft(torch.fft.rfft(g, n=2 * length) * kernel, n=2 * length)
    return y[..., :length] + filter_fn["bias"][:, None] * g


def implicit_filter(filter_fn: Tensors, direction: str, length: int, w_mod: float) -> Tensor:
    """Compute taps (H, L) of one direction ("" or "_rev"): a network of sines, decaying with time."""
    network = filter_fn.within(f"implicit_filter{direction}.")
    sines = [f"implicit_filter{way}.{index}.freq" for way in ("", "_rev") for index in (1, 3, 5)]
    frequency = filter_fn.first_of(sines) * w_mod  # one tensor for all six
    h = filter_fn["pos_emb.z"][0, :length]
    for index in (0, 2, 4):
        h = torch.sin(frequency * network.linear(h, f"{index}"))
    time, delta = filter_fn["pos_emb.t"][0, :length], filter_fn["modulation.deltas"][0].abs()
    return (F.linear(h, network["6.weight"]) * torch.exp(-time * delta)).T


def mlp(y: Tensor, tensors: Tensors) -> Tensor:
    """Apply the gated feed-forward network. (B, L, H) -> (B, L, H)."""
    gate, linear = blocks_linear(y, tensors["gated_layers.weight"]).chunk(2, dim=-1)
    return blocks_linear(F.gelu(gate) * linear, tensors["wo.weight"]) + tensors["wo.bias"]


def blocks_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Apply a dense weight (out, in) or a block-diagonal one (k, out / k, in / k). (.., in) -> (.., out)."""
    if weight.ndim == 2:
        return F.linear(x, weight)
    return torch.cat([F.linear(part, w) for part, w in zip(x.chunk(len(weight), -1), weight, strict=True)], dim=-1)


def pooled(x: Tensor, attention_mask: Tensor, bert: Tensors, options: Options) -> Tensor:
    """Pool (B, H): the first position as it is, or the pooler on it or on the mean of real positions."""
    if options.use_cls_token:
        return x[:, 0]
    mask = attention_mask[..., None].to(x.dtype)
    chosen = (x * mask).sum(1) / mask.sum(1) if options.pool_all else x[:, 0]
    return torch.tanh(bert.linear(chosen, "pooler.dense"))
