"""Checks of the model's inputs: each refusal names the argument, the value and the fix."""

import torch
from torch import Tensor

from .m2bert_rows import values_are_hidden


def check_inputs(
    config,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
):
    """Raise ValueError for bad shapes and lengths; on CPU also for ids outside their vocabulary (on an accelerator
    looking at values would make it wait; inside torch.compile it would break the graph)."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass exactly one of input_ids and inputs_embeds")
    name, x = ("input_ids", input_ids) if input_ids is not None else ("inputs_embeds", inputs_embeds)
    widths = () if input_ids is not None else (config.hidden_size,)
    if x.ndim != 2 + len(widths) or (x.shape[0] > 0 and x.shape[1] == 0) or x.shape[2:] != widths:
        expected = f"(batch, length >= 1{''.join(f', {width}' for width in widths)})"
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {expected}")
    longest = config.max_position_embeddings
    if x.shape[1] > longest:
        raise ValueError(
            f"sequence of {x.shape[1]} tokens exceeds max_position_embeddings={longest}; truncate it "
            f"(tokenizer(..., truncation=True, max_length={longest})) or use a model with a longer context"
        )
    for other_name, other in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
        if other is not None and other.shape != x.shape[:2]:
            raise ValueError(
                f"{other_name} has shape {tuple(other.shape)} but {name} has {tuple(x.shape[:2])}; make them equal"
            )
    if torch.compiler.is_compiling():
        return
    if torch.autograd.forward_ad._current_level >= 0:
        raise NotImplementedError(
            "m2bert's operations have no forward-mode derivatives (jvp, dual numbers); use backward"
        )
    if input_ids is not None and input_ids.device.type == "cpu":
        fix = "use the model's own tokenizer, or resize_token_embeddings"
        _check_range("input_ids", input_ids, "vocab_size", config.vocab_size, fix)
    if token_type_ids is not None and token_type_ids.device.type == "cpu":
        fix = "leave token_type_ids out for type 0"
        _check_range("token_type_ids", token_type_ids, "type_vocab_size", config.type_vocab_size, fix)


def _check_range(name: str, ids: Tensor, size_name: str, size: int, fix: str):
    low, high = (int(value) for value in ids.aminmax()) if ids.numel() else (0, 0)
    if low < 0 or high >= size:
        odd = low if low < 0 else high
        raise ValueError(f"{name} holds id {odd}, outside the vocabulary of {size_name}={size}; {fix}")


def visible_tokens(mask: Tensor) -> Tensor | None:
    """Mask of ones then zeros (B, L) bool as it is; None where it hides nothing.

    Raises:
        ValueError: a zero stands before a one (not checked where values are hidden).
    """
    if not values_are_hidden(mask):
        if bool(mask.all()):
            return None
        if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise ValueError(
                "attention_mask must be ones then zeros in every row, but a zero stands before a one; "
                "pad on the right (tokenizer.padding_side='right')"
            )
    return mask
