"""Masked-language-model batches: documents in random order, joined and cut into rows of equal length, masked.

A batch is a function of (seed, step, rank) alone.
"""

from dataclasses import dataclass

import numpy as np
import torch

IGNORE = -100


@dataclass
class MaskedLmData:
    """Rows of tokens and what masking needs to know of the vocabulary.

    Args:
        rows: (R, row_tokens) int32, special tokens included.
        special_ids: ids that are never masked and never drawn as a random replacement.
    """

    rows: np.ndarray
    vocab_size: int
    mask_id: int
    special_ids: list[int]

    def batch(self, step: int, *, batch_rows: int, mask_probability: float, seed: int, rank: int = 0, world: int = 1):
        """Rows for one step: epochs are permutations, ranks take different rows.

        Returns:
            input_ids, attention_mask, labels, all (batch_rows, row_tokens) int64; labels are -100 where not predicted.
        """
        first = ((step - 1) * world + rank) * batch_rows
        epochs, offsets = np.divmod(np.arange(first, first + batch_rows), len(self.rows))
        orders = {epoch: np.random.default_rng([seed, epoch]).permutation(len(self.rows)) for epoch in set(epochs)}
        indices = [orders[epoch][offset] for epoch, offset in zip(epochs, offsets, strict=True)]
        return self.mask(self.rows[indices], mask_probability, np.random.default_rng([seed, step, rank]))

    def mask(self, rows: np.ndarray, probability: float, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """Choose `probability` of the ordinary tokens; of these 80 % become [MASK], 10 % a random token, 10 % stay
        (Devlin et al., 2019). At least one token is chosen."""
        rows = rows.astype(np.int64)
        ordinary = ~np.isin(rows, self.special_ids)
        chosen = (generator.random(rows.shape) < probability) & ordinary
        if not chosen.any():
            chosen.flat[np.flatnonzero(ordinary)[:1]] = True
        labels = np.where(chosen, rows, IGNORE)
        action = generator.random(rows.shape)
        replacements = np.setdiff1d(np.arange(self.vocab_size), self.special_ids)
        inputs = np.where(chosen & (action < 0.8), self.mask_id, rows)
        random_tokens = generator.choice(replacements, rows.shape)
        inputs = np.where(chosen & (action >= 0.8) & (action < 0.9), random_tokens, inputs)
        return {
            "input_ids": torch.from_numpy(inputs),
            "attention_mask": torch.ones(rows.shape, dtype=torch.int64),
            "labels": torch.from_numpy(labels),
        }


def pack_rows(documents: list[np.ndarray], row_tokens: int, cls_id: int, sep_id: int, seed: int) -> np.ndarray:
    """Documents in random order, joined by [SEP] and cut into full rows `[CLS] .. [SEP]`; (R, row_tokens) int32.
    The rest that does not fill a row is left out.

    Raises:
        ValueError: the documents together do not fill one row.
    """
    order = np.random.default_rng(seed).permutation(len(documents))
    stream = np.concatenate(
        [np.append(documents[i], sep_id).astype(np.int32) for i in order] or [np.empty(0, np.int32)]
    )
    content = row_tokens - 2
    count = len(stream) // content
    if count == 0:
        raise ValueError(
            f"the text has {len(stream)} tokens, less than one row of row_tokens={row_tokens}; "
            "lower data.row_tokens or add text"
        )
    body = stream[: count * content].reshape(count, content)
    ends = np.full((count, 1), cls_id, np.int32), np.full((count, 1), sep_id, np.int32)
    return np.concatenate([ends[0], body, ends[1]], axis=1)
