"""Batches: deterministic, correctly masked, and pairs that are what they claim."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m2bert_train.data_mlm import MaskedLmData, pack_rows
from m2bert_train.data_pairs import PairData

CLS, SEP, PAD, MASK = 2, 3, 0, 4
SPECIAL = [0, 1, 2, 3, 4]


def documents(count=6, tokens=200, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 500, tokens + 10 * i).astype(np.int32) for i in range(count)]


def test_packing_keeps_every_token_once_and_in_order():
    rows = pack_rows(documents(), 50, CLS, SEP, seed=0)
    assert rows.shape[1] == 50
    assert (rows[:, 0] == CLS).all()
    assert (rows[:, -1] == SEP).all()
    stream = rows[:, 1:-1].ravel()
    total = sum(len(document) + 1 for document in documents())
    assert total - 48 < len(stream) <= total
    whole = next(d for d in documents() if np.array_equal(d, stream[: len(d)]))
    assert stream[len(whole)] == SEP


def test_too_little_text_is_named():
    with pytest.raises(ValueError, match="row_tokens=5000"):
        pack_rows(documents(1), 5000, CLS, SEP, seed=0)


@pytest.fixture
def masked():
    return MaskedLmData(pack_rows(documents(40, 400), 128, CLS, SEP, seed=0), 500, MASK, SPECIAL)


def test_masking_is_80_10_10_of_the_chosen_and_never_special(masked):
    batch = masked.batch(1, batch_rows=100, mask_probability=0.3, seed=0)
    original = batch["input_ids"].where(batch["labels"] == -100, batch["labels"])
    chosen = batch["labels"] != -100
    assert chosen.float().mean() == pytest.approx(0.3, abs=0.02)
    assert not torch.isin(original[chosen], torch.tensor(SPECIAL)).any()
    assert torch.equal(batch["input_ids"][~chosen], original[~chosen])
    is_mask, is_kept = batch["input_ids"][chosen] == MASK, batch["input_ids"][chosen] == original[chosen]
    assert is_mask.float().mean() == pytest.approx(0.8, abs=0.03)
    assert is_kept.float().mean() == pytest.approx(0.1, abs=0.03)
    assert not torch.isin(batch["input_ids"][chosen & (batch["input_ids"] != MASK)], torch.tensor(SPECIAL)).any()


def test_masked_batches_repeat_by_seed_and_step_and_differ_otherwise(masked):
    def batch(**changes):
        arguments = {"step": 3, "batch_rows": 8, "mask_probability": 0.3, "seed": 0} | changes
        return masked.batch(arguments.pop("step"), **arguments)["input_ids"]

    assert torch.equal(batch(), batch())
    for change in ({"step": 4}, {"seed": 1}, {"rank": 1, "world": 2}):
        assert not torch.equal(batch(), batch(**change))


def test_an_epoch_shows_every_row_once_whatever_the_number_of_processes(masked):
    count = len(masked.rows)
    for world in (1, 2):
        seen = []
        for step in range(1, count // (4 * world) + 1):
            for rank in range(world):
                b = masked.batch(step, batch_rows=4, mask_probability=0.3, seed=0, rank=rank, world=world)
                seen += [tuple(row.tolist()) for row in b["input_ids"].where(b["labels"] == -100, b["labels"])]
        assert len(set(seen)) == len(seen)


def test_one_token_is_always_masked(masked):
    assert (masked.batch(1, batch_rows=1, mask_probability=0.0, seed=0)["labels"] != -100).sum() == 1


SETTINGS = SimpleNamespace(
    documents_per_batch=4, document_tokens=100, passages_per_document=3, passage_tokens=[5, 12], passage_share=1.0
)


def pairs(**changes):
    queries = [(documents()[i][:7], [i]) for i in (0, 0, 3, 5)]
    return PairData(documents(), queries, CLS, SEP, PAD, **changes)


def unpad(side, i):
    row = side["input_ids"][i][side["attention_mask"][i].bool()].tolist()
    assert row[0] == CLS
    assert row[-1] == SEP
    return row[1:-1]


def contains(haystack, needle):
    return any(haystack[i : i + len(needle)] == needle for i in range(len(haystack) - len(needle) + 1))


def test_passages_are_cut_out_of_the_document_they_answer():
    for step in range(1, 6):
        batch = pairs().batch(step, SETTINGS, seed=0)
        assert batch["relevant"].shape == (12, 4)
        assert (batch["relevant"].sum(1) == 1).all()
        for i, answer in enumerate(batch["relevant"].int().argmax(1).tolist()):
            passage, rest = unpad(batch["queries"], i), unpad(batch["documents"], answer)
            assert 5 <= len(passage) <= 12
            assert len(rest) <= 98
            assert not contains(rest, passage)
            assert sum(contains(document.tolist(), passage) for document in documents()) == 1


def test_labelled_queries_meet_their_documents_once():
    settings = SimpleNamespace(**vars(SETTINGS) | {"passage_share": 0.0})
    batch = pairs().batch(1, settings, seed=0)
    assert batch["relevant"].shape == (4, 3)  # two queries share a document
    for i, answer in enumerate(batch["relevant"].int().argmax(1).tolist()):
        source = next(d for d in documents() if d[:7].tolist() == unpad(batch["queries"], i))
        assert contains(source.tolist(), unpad(batch["documents"], answer))


def test_every_answer_of_a_query_is_relevant_and_none_a_negative():
    settings = SimpleNamespace(**vars(SETTINGS) | {"passage_share": 0.0, "documents_per_batch": 3})
    query = documents()[0][:7]
    data = PairData(documents(), [(query, [0, 1]), (query, [0]), (query, [1])], CLS, SEP, PAD)
    seen = set()
    for step in range(1, 9):
        relevant = data.batch(step, settings, seed=0)["relevant"]
        assert relevant.shape == (3, 2)
        assert sorted(relevant.sum(1).tolist()) == [1, 1, 2]
        seen.add(tuple(relevant.flatten().tolist()))
    assert len(seen) > 1


def test_pair_batches_repeat_by_seed_and_step():
    a, b, c = (pairs().batch(step, SETTINGS, seed=0) for step in (2, 2, 3))
    assert torch.equal(a["documents"]["input_ids"], b["documents"]["input_ids"])
    assert a["documents"]["input_ids"].shape != c["documents"]["input_ids"].shape or not torch.equal(
        a["documents"]["input_ids"], c["documents"]["input_ids"]
    )


def test_query_dropout_prefers_rare_tokens_and_leaves_one():
    idf = np.full(500, 0.05, dtype=np.float32)
    idf[250:] = 8.0
    data, rng = pairs(idf=idf), np.random.default_rng(0)
    query = np.arange(5, 500)
    kept = data._drop(query, rng)
    assert (kept >= 250).mean() > 0.8
    assert len(data._drop(np.array([5]), rng)) == 1


def test_tiny_documents_still_make_pairs():
    data = PairData([np.arange(5, 13), np.arange(20, 40)], [], CLS, SEP, PAD)
    batch = data.batch(1, SETTINGS, seed=0)
    assert len(batch["relevant"]) >= 3
