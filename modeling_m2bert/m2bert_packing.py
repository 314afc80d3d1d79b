"""Check the model's inputs, and pack texts of different lengths side by side, without their padding.

So nothing is computed for a padded position. Where shapes must not depend on the values of a mask (torch.compile, CUDA
graphs), the padding stays, and the operations are told how long each row is.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Where the rows of a batch lie in (T, ..).

    Row b has the positions offsets[b] .. offsets[b + 1], of which the first lengths[b] are real.
    """

    offsets: Tensor  # (B + 1,) int32
    lengths: Tensor  # (B,) int32
    longest: int  # no row has more positions


class Packing(NamedTuple):
    """Convert between a padded batch (B, L, ..) and its packed tokens (T, ..)."""

    rows: Rows
    places: Tensor | None  # (T,) int64, the place of each token in (B * L,); None: all B * L places, in order
    padding: Tensor | None  # (B, L) bool, True at padding that stays among the tokens; None: there is none
    shape: tuple[int, int]  # (B, L)

    def pack(self, x: Tensor) -> Tensor:
        """Pack (B, L, ..) -> (T, ..)."""
        x = x.flatten(0, 1)
        return x if self.places is None else x[self.places]

    def repack(self, x: Tensor, like: Tensor) -> Tensor:
        """Pack (B, L, H) with the strides of `like` (T, H), since the rounding of products depends on strides."""
        x = self.pack(x)
        return x if x.stride() == like.stride() else x.T.contiguous().T

    def unpack(self, x: Tensor) -> Tensor:
        """Unpack (T, H) of any strides -> (B, L, H) contiguous, zero in padding."""
        batch, length = self.shape
        if self.places is not None:
            x = x.new_zeros(batch * length, x.shape[-1]).index_copy(0, self.places, x)
        x = x.contiguous().reshape(batch, length, x.shape[-1])  # torch transposes matrices fast, in blocks
        return x if self.padding is None else x.masked_fill(self.padding[..., None], 0)


def values_are_hidden(x: Tensor) -> bool:
    """Return whether the program must not look at the values of x.

    That is so inside torch.compile, and while a CUDA graph is captured.
    """
    return torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing())


def pack_rows(shape: tuple[int, int], device: torch.device, mask: Tensor | None) -> Packing:
    """Return how to pack a batch.

    Args:
        shape: (B, L).
        device: of the tokens.
        mask: (B, L) bool, ones then zeros in every row; None: all tokens are real.
    """
    batch, length = shape
    if mask is None or values_are_hidden(mask):
        offsets = torch.arange(batch + 1, dtype=torch.int32, device=device) * length
        lengths = offsets.diff() if mask is None else mask.sum(1, dtype=torch.int32)
        padding = None if mask is None else ~mask
        return Packing(Rows(offsets, lengths, length), None, padding, shape)
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
    """Raise ValueError for bad shapes and lengths, and on CPU for ids outside their vocabulary.

    Ids are not checked on an accelerator, which would have to wait for it, or inside torch.compile, where it would
    break the graph.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass exactly one of input_ids and inputs_embeds")
    main_input = input_ids if inputs_embeds is None else inputs_embeds
    shape, longest = main_input.shape[:2], config.max_position_embeddings
    if len(shape) == 2 and shape[1] > longest:
        raise ValueError(
            f"sequence of {shape[1]} tokens exceeds max_position_embeddings={longest}; truncate it "
            f"(tokenizer(..., truncation=True, max_length={longest})) or use a model with a longer context"
        )
    bad_size = len(shape) < 2 or (shape[0] > 0 and shape[1] == 0)
    names = "input_ids", "attention_mask", "token_type_ids", "inputs_embeds"
    for name, given in zip(names, (input_ids, attention_mask, token_type_ids, inputs_embeds), strict=True):
        last = (config.hidden_size,) if name == "inputs_embeds" else ()
        if given is not None and (bad_size or given.shape != (*shape, *last)):
            expected = ", ".join(("batch", "length >= 1", *map(str, last)))
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
                bad_id = low if low < 0 else high
                raise ValueError(f"{name} holds id {bad_id}, outside the vocabulary of {size_name}={size}; {fix}")


def visible_tokens(mask: Tensor) -> Tensor | None:
    """Return the mask (B, L) bool unchanged, or None if all its values are known to be ones.

    Raises:
        ValueError: a zero stands before a one in a row (not checked where values are hidden).
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
