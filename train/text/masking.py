"""The masked-language-model task: which tokens are hidden, and as what (Devlin et al., 2019)."""

import numpy as np
import torch

IGNORE = -100


class Masking:
    """Makes masked batches of token rows.

    Args:
        tokenizer: has [CLS], [SEP], [MASK] and [PAD]; special tokens are never chosen and never a replacement.

    Raises:
        ValueError: the tokenizer lacks one of them.
    """

    def __init__(self, tokenizer):
        for name in ("cls_token", "sep_token", "mask_token", "pad_token"):
            if getattr(tokenizer, name) is None:
                raise ValueError(f"the tokenizer has no {name}, which masked-language modelling needs; use another one")
        self.mask_id, self.pad_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        self.replacements = np.setdiff1d(list(tokenizer.get_vocab().values()), tokenizer.all_special_ids)
        self.is_ordinary = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=bool)
        self.is_ordinary[self.replacements] = True

    def batch(self, rows: list[np.ndarray], probability: float, generator: np.random.Generator):
        """Choose `probability` of the ordinary tokens; of these 80 % become [MASK], 10 % a random token, 10 % stay. At
        least one token is chosen.

        Args:
            rows: token ids with special tokens, of any lengths.

        Returns:
            input_ids, attention_mask, labels, all (B, L) int64, padded on the right; labels are -100 where not
            predicted.
        """
        ids, attention = self.pad(rows)
        ordinary = self.is_ordinary[ids]
        chosen = np.flatnonzero((generator.random(ids.shape, dtype=np.float32) < probability) & ordinary)
        if not len(chosen):
            chosen = np.flatnonzero(ordinary)[:1]
        labels = np.full_like(ids, IGNORE)
        labels.flat[chosen] = ids.flat[chosen]
        action = generator.random(len(chosen))
        random_tokens = generator.choice(self.replacements, len(chosen))
        hidden = np.where(action < 0.8, self.mask_id, np.where(action < 0.9, random_tokens, ids.flat[chosen]))
        ids.flat[chosen] = hidden
        tensors = {"input_ids": ids, "attention_mask": attention, "labels": labels}
        return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}

    def pad(self, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(ids, mask), (B, L) int64."""
        lengths = np.array([len(row) for row in rows])
        attention = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        ids = np.full(attention.shape, self.pad_id, dtype=np.int64)
        ids[attention.astype(bool)] = np.concatenate(rows)
        return ids, attention
