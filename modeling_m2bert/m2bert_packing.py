"""Lay texts of different lengths side by side, without padding: nothing is computed for a padded position.
The model's inputs are checked before that.

Where shapes must not depend on the values of a mask (torch.compile, CUDA graphs), the padding stays and the operations
are told how long each row is.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """How the T tokens of a batch lie in (T, ..): row b in offsets[b] .. offsets[b + 1], lengths[b] of them real."""

    offsets: Tensor  # (B + 1,) int32
    lengths: Tensor  # (B,) int32
    longest: int


class Packing(NamedTuple):
    """The way between (B, L, ..) and (T, ..)."""

    rows: Rows
    places: Tensor | None  # (T,) int64, where each token stands in (B * L,); None: all of them, in order
    padding: Tensor | None  # (B, L) bool where padding stays among the tokens
    shape: tuple[int, int]  # (B, L)

    def pack(self, x: Tensor) -> Tensor:
        """Pack (B, L, ..) -> (T, ..)."""
        x = x.flatten(0, 1)
        return x if self.places is None else x[self.places]

    def repack(self, x: Tensor, like: Tensor) -> Tensor:
        """Pack (B, L, H) with the strides that `like` (T, H) has: products round by layout."""
        x = self.pack(x)
        return x if x.stride() == like.stride() else x.T.contiguous().T

    def unpack(self, x: Tensor) -> Tensor:
        """Unpack (T, H) of any strides -> (B, L, H) contiguous, zero in padding."""
        batch, length = self.shape
        if self.places is not None:
            x = x.new_zeros(batch * length, x.shape[-1]).index_copy(0, self.places, x)
        x = x.reshape(batch, length, x.shape[-1]).contiguous()
        return x if self.padding is None else x.masked_fill(self.padding[..., None], 0)


def values_are_hidden(x: Tensor) -> bool:
    """Return whether nothing may depend on the values of x: inside torch.compile, and while a CUDA graph is
    captured."""
    return torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing())


def pack_rows(shape: tuple[int, int], device: torch.device, mask: Tensor | None) -> Packing:
    """Lay the tokens of a batch side by side.

    Args:
        shape: (B, L). device: of the tokens.
        mask: (B, L) bool, ones then zeros; None: all tokens are real.
    """
    batch, length = shape
    if mask is None or values_are_hidden(mask):
        offsets = torch.arange(batch + 1, dtype=torch.int32, device=device) * length
        lengths = offsets.diff() if mask is None else mask.sum(1, dtype=torch.int32)
        return Packing(Rows(offsets, lengths, length), None, None if mask is None else ~mask, shape)
    lengths = mask.sum(1, dtype=torch.int32)
    offsets = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    rows = Rows(offsets, lengths, int(lengths.max()) if batch else 0)
    return Packing(rows, mask.flatten().nonzero()[:, 0], None, shape)


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
    x = input_ids if inputs_embeds is None else inputs_embeds
    shape, longest = x.shape[:2], config.max_position_embeddings
    if x.ndim >= 2 and shape[1] > longest:
        raise ValueError(
            f"sequence of {shape[1]} tokens exceeds max_position_embeddings={longest}; truncate it "
            f"(tokenizer(..., truncation=True, max_length={longest})) or use a model with a longer context"
        )
    names = "input_ids", "attention_mask", "token_type_ids", "inputs_embeds"
    for name, given in zip(names, (input_ids, attention_mask, token_type_ids, inputs_embeds), strict=True):
        width = (config.hidden_size,) if name == "inputs_embeds" else ()
        bad_size = x.ndim < 2 or (shape[0] > 0 and shape[1] == 0)
        if given is not None and (bad_size or given.shape != (*shape, *width)):
            expected = ", ".join(("batch", "length >= 1", *map(str, width)))
            raise ValueError(f"{name} has shape {tuple(given.shape)}; expected ({expected}), the same for all inputs")
    if torch.compiler.is_compiling():
        return
    if torch.autograd.forward_ad._current_level >= 0:
        raise NotImplementedError(
            "m2bert's operations have no forward-mode derivatives (jvp, dual numbers); use backward"
        )
    for name, ids, size_name, fix in (
        ("input_ids", input_ids, "vocab_size", "use the model's own tokenizer, or resize_token_embeddings"),
        ("token_type_ids", token_type_ids, "type_vocab_size", "leave token_type_ids out for type 0"),
    ):
        if ids is not None and ids.device.type == "cpu" and ids.numel():
            size = getattr(config, size_name)
            low, high = (int(value) for value in ids.aminmax())
            if low < 0 or high >= size:
                odd = low if low < 0 else high
                raise ValueError(f"{name} holds id {odd}, outside the vocabulary of {size_name}={size}; {fix}")


def visible_tokens(mask: Tensor) -> Tensor | None:
    """Return a mask of ones then zeros (B, L) bool as it is, or None if it hides nothing.

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
