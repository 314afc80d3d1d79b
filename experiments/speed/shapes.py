"""Attention encoders to compare with: the shapes of published models, with random weights, nothing downloaded.

Time and memory depend on the shape, not on the values of the weights. `granite-97m` is built from what is published
about granite-embedding-97m-multilingual-r2 (ModernBERT, 12 layers, width 384, 180k tokens, SiLU, 32768 positions); its
feed-forward width of 1536 and 12 heads are inferred: with them the shape has 97M parameters.
"""

import importlib.util
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, BertConfig, MistralConfig, ModernBertConfig, Qwen3Config


@dataclass(frozen=True)
class Shape:
    """A transformers configuration, and how long inputs are fed to it.

    Attributes:
        config: configuration class. settings: its arguments.
        layers_name: the argument that holds the number of layers.
        chunk: tokens that the model can take at once; longer inputs are cut into chunks. None: takes them whole.
        attention: transformers' attention implementation.
        needs_gpu: too large, or without an implementation, for a CPU.
        description: one line for tables.
    """

    config: type
    settings: dict
    description: str
    chunk: int | None = None
    attention: str = "sdpa"
    needs_gpu: bool = False

    def build(self, dtype: torch.dtype, device: str, layers: int | None, longest: int) -> nn.Module:
        """The model with random weights, in evaluation mode. `layers`: another depth (None: the published one);
        `longest`: tokens per input, for models whose published context is shorter and not chunked."""
        settings = dict(self.settings)
        if layers is not None:
            settings["num_hidden_layers"] = layers
        if self.chunk is None:
            settings["max_position_embeddings"] = max(longest, settings["max_position_embeddings"])
        config = self.config(**settings)
        with torch.device(device):
            model = AutoModel.from_config(config, dtype=dtype, attn_implementation=self.attention)
        return model.eval()


MODERNBERT = {"max_position_embeddings": 8192}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536} | NO_DROPOUT
GRANITE = {
    "vocab_size": 180_000,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "hidden_activation": "silu",
    "max_position_embeddings": 32768,
}
QWEN = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 32768,
    "use_cache": False,
}
MISTRAL = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "sliding_window": None,
    "use_cache": False,
}

SHAPES = {
    "bert-base": Shape(BertConfig, dict(NO_DROPOUT), "BERT-base, chunks of 512 tokens", chunk=512),
    "minilm-l6": Shape(BertConfig, MINILM, "MiniLM-L6, chunks of 256 tokens", chunk=256),
    "minilm-l6-512": Shape(BertConfig, MINILM, "MiniLM-L6, chunks of 512 tokens", chunk=512),
    "modernbert-base": Shape(ModernBertConfig, MODERNBERT, "ModernBERT-base, whole input"),
    "modernbert-base-flash": Shape(
        ModernBertConfig,
        MODERNBERT,
        "ModernBERT-base, whole input, FlashAttention 2",
        attention="flash_attention_2",
        needs_gpu=True,
    ),
    "granite-97m": Shape(ModernBertConfig, GRANITE, "ModernBERT shape of 97M parameters, whole input"),
    "qwen3-0.6b": Shape(Qwen3Config, QWEN, "Qwen3-0.6B (causal), whole input"),
    "mistral-7b": Shape(MistralConfig, MISTRAL, "Mistral-7B (causal), whole input", needs_gpu=True),
}


def why_not(name: str, dtype: str, device: str, lengths: list[int]) -> str | None:
    """Why this shape cannot run here, as the end of an error message; None where it can."""
    shape = SHAPES[name]
    if shape.needs_gpu and device == "cpu":
        return "needs a GPU; drop it"
    if shape.attention == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            return "needs the flash-attn package; install it, or use modernbert-base"
        if dtype == "float32":
            return "runs in half precision only; use :bfloat16"
    odd = [length for length in lengths if shape.chunk is not None and length > shape.chunk and length % shape.chunk]
    if odd:
        return f"takes chunks of {shape.chunk} tokens, which --lengths={odd[0]} is no multiple of; drop one of the two"
    return None
