"""The task: what is hidden, as what, and what never is."""

import numpy as np
import pytest
import torch

from m2bert.train.text.masking import Masking
from m2bert.train.tokenizer import train_wordpiece

TOKENIZER = train_wordpiece([f"word{i} and{i}" for i in range(200)], 150)
SPECIAL = TOKENIZER.all_special_ids
ORDINARY = sorted(set(TOKENIZER.get_vocab().values()) - set(SPECIAL))


def rows(count=100, longest=120, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest, count)
    return [np.array([TOKENIZER.cls_token_id, *rng.choice(ORDINARY, n), TOKENIZER.sep_token_id]) for n in lengths]


def batch(rows, probability=0.3, seed=0):
    return Masking(TOKENIZER).batch(rows, probability, np.random.default_rng(seed))


def test_masking_is_80_10_10_of_the_chosen_and_never_special():
    made, given = batch(rows()), rows()
    ids, labels, attention = made["input_ids"], made["labels"], made["attention_mask"].bool()
    chosen = labels != -100
    original = ids.where(~chosen, labels)
    for row, mask, expected in zip(original, attention, given, strict=True):
        assert row[mask].tolist() == expected.tolist()
        assert (row[~mask] == TOKENIZER.pad_token_id).all()
    assert (attention.sum(1) == torch.tensor([len(row) for row in given])).all()
    assert torch.equal(attention.long().cumsum(1)[:, -1], attention.sum(1))
    assert not chosen[~attention].any()
    special = torch.tensor(SPECIAL)
    assert not torch.isin(original[chosen], special).any()
    ordinary = attention & ~torch.isin(original, special)
    assert chosen.sum() / ordinary.sum() == pytest.approx(0.3, abs=0.02)
    hidden = ids[chosen]
    is_mask, is_kept = hidden == TOKENIZER.mask_token_id, hidden == original[chosen]
    assert is_mask.float().mean() == pytest.approx(0.8, abs=0.03)
    assert is_kept.float().mean() == pytest.approx(0.1, abs=0.03)
    assert not torch.isin(hidden[~is_mask], special).any()
    assert set(hidden[~is_mask & ~is_kept].tolist()) <= set(ORDINARY)


def test_masks_are_those_of_the_generator():
    assert all(torch.equal(a, b) for a, b in zip(batch(rows()).values(), batch(rows()).values(), strict=True))
    assert not torch.equal(batch(rows())["labels"], batch(rows(), seed=1)["labels"])


def test_one_token_is_always_masked():
    assert (batch(rows(3), probability=0.0)["labels"] != -100).sum() == 1


def test_a_tokenizer_without_a_mask_token_is_refused():
    class Bare:
        cls_token = sep_token = pad_token = "[X]"
        mask_token = None

    with pytest.raises(ValueError, match="no mask_token"):
        Masking(Bare())
