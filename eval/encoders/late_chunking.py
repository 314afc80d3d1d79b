"""Late chunking: several vectors from one pass over a whole document.

The model reads the document once, so that every token has seen all of it; only then are the tokens divided into
equal consecutive parts and each part pooled to a vector (Guenther et al. 2024, "Late Chunking: Contextual Chunk
Embeddings Using Long-Context Embedding Models", arXiv 2409.04701).
"""

import inspect

import numpy as np
import torch
from torch import Tensor

from .model_loading import pools_itself

FEWEST_TOKENS = 32  # of a part: a short document gets fewer vectors
POOLS_ONE_TOKEN = ("cls", "lasttoken")


def check_late_chunking(model, name: str) -> None:
    """Refuse a model whose vector is not some mean over its tokens.

    Args:
        model: a `SentenceTransformer`. name: what errors call it.

    Raises:
        ValueError: the model's vector is one token's, or it pools in a way that is not known here.
    """
    refusal = f"encoder {name!r} cannot divide a document after one pass: "
    transformer, *others = model
    if not hasattr(transformer, "model") or not hasattr(transformer, "modality_config"):
        raise ValueError(
            f"{refusal}its first module is {type(transformer).__name__}, not a Transformer; use best-chunk"
        )
    if not pools_itself(transformer):
        modes = [mode for module in others for mode in _modes(module)]
    else:
        pooler = getattr(transformer.model, "pooler", None)
        if pooler is None or len(inspect.signature(pooler.forward).parameters) != 3:
            raise ValueError(
                f"{refusal}its model pools in a way that takes no mask of tokens, as a pooler with forward("
                "hidden_states, mask, input_ids) would; use best-chunk"
            )
        modes = [str(getattr(pooler, "pooling", ""))]
    single = [mode for mode in modes if mode.startswith(POOLS_ONE_TOKEN)]
    if single or not modes:
        raise ValueError(
            f"{refusal}its pooling {', '.join(single) or 'is unknown'} is no mean over tokens; use best-chunk"
        )


def _modes(module) -> list[str]:
    modes = getattr(module, "pooling_mode", [])
    return [modes] if isinstance(modes, str) else list(modes)


def part_counts(lengths: np.ndarray, parts: int) -> np.ndarray:
    """Return (n,) int64: how many parts documents of so many tokens get, at least 1 and at most `parts`."""
    return np.clip(lengths // FEWEST_TOKENS, 1, parts).astype(np.int64)


@torch.inference_mode()
def pool_parts(model, features: dict, counts: Tensor) -> list[Tensor]:
    """Run the model once and pool `counts` (B,) equal parts of each row.

    Args:
        model: a `SentenceTransformer` in evaluation mode that `check_late_chunking` accepts.
        features: what its `preprocess` returns, on its device.

    Returns:
        of each row (its count, d). The special tokens belong to the first and the last part, a prompt to the first.
    """
    transformer, *others = model
    mask = features["attention_mask"].bool()  # (B, L)
    prompt = features.pop("prompt_length", None)  # else the pooling would drop so many tokens of every part
    if prompt is not None and not all(getattr(module, "include_prompt", True) for module in others):
        mask = mask & (mask.cumsum(1) > int(prompt))
    part = (mask.cumsum(1) - 1) * counts[:, None] // mask.sum(1, keepdim=True).clamp(min=1)
    part = part.masked_fill(~mask, -1)  # (B, L): which part a token belongs to
    if pools_itself(transformer):
        names = ("input_ids", "attention_mask", "token_type_ids")
        hidden = transformer.model(**{name: features[name] for name in names if name in features}).last_hidden_state
    else:
        features = transformer(features)
    vectors = []
    for number in range(int(counts.max())):
        chosen = part == number
        if pools_itself(transformer):
            outputs = {"sentence_embedding": transformer.model.pooler(hidden, chosen, features["input_ids"])}
        else:
            outputs = {**features, "attention_mask": chosen.to(features["attention_mask"].dtype)}
        for module in others:
            outputs = module(outputs)
        vectors.append(outputs["sentence_embedding"])
    stacked = torch.stack(vectors, dim=1)  # (B, parts, d)
    return [rows[:count] for rows, count in zip(stacked, counts.tolist(), strict=True)]
