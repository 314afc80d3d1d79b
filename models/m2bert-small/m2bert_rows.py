"""Texts of different lengths side by side, without padding: nothing is computed for a padded position.

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
        """(B, L, ..) -> (T, ..)."""
        x = x.flatten(0, 1)
        return x if self.places is None else x[self.places]

    def repack(self, x: Tensor, like: Tensor) -> Tensor:
        """`pack` of (B, L, H), with the strides that `like` (T, H) has: products round by layout."""
        x = self.pack(x)
        return x if x.stride() == like.stride() else x.T.contiguous().T

    def unpack(self, x: Tensor) -> Tensor:
        """(T, H) of any strides -> (B, L, H) contiguous, zero in padding."""
        batch, length = self.shape
        if self.places is not None:
            x = x.new_zeros(batch * length, x.shape[-1]).index_copy(0, self.places, x)
        x = x.reshape(batch, length, x.shape[-1]).contiguous()
        return x if self.padding is None else x.masked_fill(self.padding[..., None], 0)


def values_are_hidden(x: Tensor) -> bool:
    """Whether nothing may depend on the values of x: inside torch.compile, and while a CUDA graph is captured."""
    return torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing())


def pack_rows(shape: tuple[int, int], device: torch.device, mask: Tensor | None) -> Packing:
    """
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
