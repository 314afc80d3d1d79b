"""Compare a converted model with the original's formulas, and its vectors with those of `padding="masked"`.

The formulas (`reference_forward`) are written plainly in torch and in float64, under the names of the research code
(HazyResearch/m2, folder bert/), from the original's own tensors and independent of this package's model. Nothing there
is fast; every line is one formula.
"""

import copy
import logging

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .names import DECODER, WORDS, Conversion, Options

logger = logging.getLogger(__name__)

TOLERANCE = 1e-9  # of float64; rounding alone stays far below, and any other formula far above
LONGEST_PARITY_TOKENS = 512
MASKED_BUDGET_TOKENS = 4096  # of padded texts; at least three of them
MIXER_LAYER_NORM_EPS = 1e-5  # of `attention.layernorm`
PARAGRAPH = (
    "The committee met on Tuesday to discuss the budget of the coming year. Several members asked how the cost of the "
    "new library had been estimated, and whether the old building could be sold. The treasurer answered that both "
    "figures were taken from a report of the previous spring. After a long debate the proposal was accepted with a "
    "small change. A second meeting was planned for the end of the month, when the architect will present her drawings "
    "and the residents may ask questions. "
)


def check_parity(conversion: Conversion, model: PreTrainedModel) -> dict:
    """Compare outputs of two random texts, one of them padded, with the reference implementation in float64.

    Args:
        model: the converted one, in float32, with padding="visible".

    Returns:
        Largest difference of every output, for the model in float64 and in float32; number and length of the texts.
        Raises ValueError if in float64 it is not the original, or in float32 not finite.
    """
    config = conversion.config
    length = min(LONGEST_PARITY_TOKENS, config.max_position_embeddings)
    logger.info("comparing the model with the reference implementation on 2 texts of %d tokens", length)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (2, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, length // 2 :], mask[1, length // 2 :] = config.pad_token_id or 0, 0
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    expected = reference_forward(conversion.original, conversion.options, **inputs)
    double = copy.deepcopy(model).double()
    double.load_state_dict(conversion.tensors)  # as they are in the file, not rounded to float32
    differences = {"float64": _differences(double, inputs, expected), "float32": _differences(model, inputs, expected)}
    limits = {"float64": TOLERANCE, "float32": float("inf")}
    if not all(value < limits[name] for name, found in differences.items() for value in found.values()):  # NaN neither
        raise ValueError(
            f"the converted model is not the original: their outputs differ by {differences}; an option is not what "
            "the tensors were trained with (--config), or the tensors are damaged or too large (not finite)"
        )
    return {"reference": "the original's formulas in float64", "texts": 2, "tokens": length} | differences


@torch.no_grad()
def _differences(model: PreTrainedModel, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    outputs = model(**inputs, output_hidden_states=True)
    found = dict(outputs) | {"last_hidden_state": outputs.hidden_states[-1]}
    return {name: (value - found[name]).abs().max().item() for name, value in expected.items()}


@torch.no_grad()
def compare_paddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> dict | None:
    """Return the cosines between vectors of texts padded to the maximum, as in the original, and not padded, as with
    padding="masked", for several lengths; None if there is nothing to pad. Without a tokenizer texts are random ids."""
    longest = model.config.max_position_embeddings
    lengths = [4**power for power in range(2, 16) if 4**power < longest]
    if not lengths:
        return None
    per_length = max(1, min(8, MASKED_BUDGET_TOKENS // (longest * len(lengths))))
    if longest * len(lengths) > MASKED_BUDGET_TOKENS:  # the shortest, one between, the longest
        lengths = sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]})
    cosines = []
    for tokens in tqdm(lengths, f"comparing padding visible and masked, padded to {longest} tokens", leave=False):
        texts = _texts(per_length, tokens, model.config.vocab_size, tokenizer)
        found = []
        for ids in texts:
            padded = F.pad(ids, (0, longest - len(ids)), value=model.config.pad_token_id or 0)[None]
            mask = (torch.arange(longest) < len(ids)).long()[None]
            vectors = [model(padded, mask).pooler_output, model(ids[None]).pooler_output]
            found.append(torch.cosine_similarity(*(vector.double() for vector in vectors)).item())
        mean, shortest = sum(found) / len(found), min(map(len, texts))
        cosines.append({"tokens": shortest, "texts": len(found), "mean": mean, "lowest": min(found)})
    what = "random ids" if tokenizer is None else "one English paragraph, repeated, begun at different sentences"
    return {"text": what, "cosine": cosines}


def _texts(number: int, tokens: int, vocab_size: int, tokenizer: PreTrainedTokenizerBase | None) -> list[Tensor]:
    """Return ids of `number` texts, each of `tokens` tokens, or fewer if the tokenizer takes several words as one."""
    if tokenizer is None:
        generator = torch.Generator().manual_seed(tokens)
        return list(torch.randint(vocab_size, (number, tokens), generator=generator))
    sentences = [f"{sentence}. " for sentence in PARAGRAPH.removesuffix(". ").split(". ")]
    repeats = 1 + tokens // len(sentences)  # a sentence has more than one token
    starts = [index % len(sentences) for index in range(number)]
    texts = ["".join(sentences[start:] + sentences[:start]) * repeats for start in starts]
    return [torch.tensor(ids) for ids in tokenizer(texts, truncation=True, max_length=tokens)["input_ids"]]


# --- the original's formulas ---


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
        weight = self[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self[f"{name}.bias"], eps)

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
        In float64: last_hidden_state (B, L, H); with masked-LM tensors logits (B, L, V), else pooler_output (B, H).
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
    if options.use_cls_token:
        return {"last_hidden_state": x, "pooler_output": x[:, 0]}
    mask = attention_mask[..., None].to(x.dtype)
    chosen = (x * mask).sum(1) / mask.sum(1) if options.pool_all else x[:, 0]
    return {"last_hidden_state": x, "pooler_output": torch.tanh(bert.linear(chosen, "pooler.dense"))}


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
