"""Retrieval batches: what they hold, what they compare, and that they depend on seed and step alone."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m2bert.train.pairs.batches import PairBatches, report_tasks
from m2bert.train.pairs.tokens import TokenTask

CLS, SEP = 2, 3
SETTINGS = {"form": "all", "batch_size": 4, "negatives": 0, "document_window": "random", "document_tokens": 100,
            "query_tokens": None, "passages_per_document": 3, "passage_tokens": [5, 12],
            "passage_share": 0.0}  # fmt: skip


def documents(count=6, tokens=200, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 500, tokens + 10 * i).astype(np.int32) for i in range(count)]


def make_task(answers=((0,), (0,), (3,), (5,)), negatives=None, count=6, name="one", seed=0):
    """Queries are the beginning of their first answer, and their own number."""
    texts = documents(count, seed=seed)
    queries = [np.append(texts[own[0]][:7], 600 + i) for i, own in enumerate(answers)]
    given = [list(pids) for pids in negatives or [()] * len(answers)]
    pids = [f"{name}{i}" for i in range(count)]
    return TokenTask(name, pids, texts, queries, [list(own) for own in answers], given)


def one_document(tokens):
    return TokenTask("one", ["a"], [np.arange(5, 5 + tokens)], [np.arange(3)], [[0]], [[]])


def make(*tasks, seed=0, rank=0, world=1, idf=None, **changes):
    settings = SimpleNamespace(**SETTINGS | changes)
    return PairBatches(list(tasks) or [make_task()], settings, (CLS, SEP), seed, rank, world, idf)


def unwrap(row):
    row = row.tolist()
    assert row[0] == CLS
    assert row[-1] == SEP
    return row[1:-1]


def contains(haystack, needle):
    return any(haystack[i : i + len(needle)] == needle for i in range(len(haystack) - len(needle) + 1))


def ids(batch):
    return batch["query_ids"].tolist(), batch["document_ids"].tolist()


def test_a_batch_of_passages_is_of_one_task_and_every_task_has_its_turn():
    tasks = [make_task(name="one"), make_task(name="two", count=24)]
    tasks[1] = dataclasses.replace(tasks[1], documents=[document + 1000 for document in tasks[1].documents])
    batches = make(*tasks, passage_share=1.0)
    tokens = [{*np.concatenate(task.documents).tolist()} for task in tasks]
    assert not tokens[0] & tokens[1]
    owners = []
    for step in range(1, 41):
        rows = {token for row in batches.batch(step)["documents"] for token in unwrap(row)}
        owners.append(bool(rows & tokens[1]))
        assert rows <= tokens[owners[-1]]
    assert 20 < sum(owners) < 36  # the root of 24 against that of 6: two thirds of 40


def test_passages_are_cut_out_of_the_document_they_answer():
    for step in range(1, 6):
        batch = make(passage_share=1.0).batch(step)
        assert batch["relevant"].shape == batch["compared"].shape == (12, 4)
        assert batch["compared"].all()
        assert (batch["relevant"].sum(1) == 1).all()
        for query, answer in zip(batch["queries"], batch["relevant"].int().argmax(1).tolist(), strict=True):
            passage, rest = unwrap(query), unwrap(batch["documents"][answer])
            assert 5 <= len(passage) <= 12
            assert len(rest) <= 98
            assert not contains(rest, passage)
            assert sum(contains(document.tolist(), passage) for document in documents()) == 1


@pytest.mark.parametrize("document_tokens", [20, 50, 100])
def test_the_text_around_a_passage_stays_in_the_document(document_tokens):
    """Passages take more than the document keeps of its window, and still the document is full."""
    texts = [np.arange(1000 * i, 1000 * i + 400) for i in range(1, 7)]  # a token says where it was
    task = TokenTask("one", list("abcdef"), texts, [np.arange(3)], [[0]], [[]])
    changes = {"query_tokens": 20, "passages_per_document": 4, "passage_tokens": [10, 40]}
    batch = make(task, passage_share=1.0, document_tokens=document_tokens, **changes).batch(1)
    assert len(batch["queries"]) == 16
    assert {len(document) for document in batch["documents"]} == {document_tokens}
    lengths = {len(unwrap(query)) for query in batch["queries"]}
    assert min(lengths) < max(lengths) == 18
    share = (document_tokens - 2) // 4
    for query, answer in zip(batch["queries"], batch["relevant"].int().argmax(1).tolist(), strict=True):
        passage, rest = unwrap(query), unwrap(batch["documents"][answer])
        near = [token for token in rest if passage[0] - share - 1 <= token <= passage[-1] + share + 1]
        assert len(near) >= share


def test_a_short_document_keeps_enough_and_never_more_than_is_read():
    for tokens in range(1, 140):
        data = make(one_document(tokens), document_tokens=40, passage_tokens=[5, 30])
        passages, rest = data._cut(0, np.random.default_rng(tokens))
        assert len(rest) <= 38
        assert len(rest) + sum(map(len, passages)) <= tokens
        assert len(rest) >= min(38, tokens) / 2
    assert len(make(one_document(8), passage_share=1.0).batch(1)["relevant"])
    with pytest.raises(ValueError, match="too short; set data.passage_share=0"):
        make(one_document(1), passage_share=1.0).batch(1)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 5), (0.5, 10), (1.0, 20)])
def test_the_share_of_passage_steps_is_exact_and_costs_no_labeled_query(share, expected):
    data = make(passage_share=share, batch_size=2)
    batches = [data.batch(step) for step in range(1, 21)]
    assert sum(batch["query_ids"] is None for batch in batches) == expected
    labeled = [query for batch in batches if batch["query_ids"] is not None for query in ids(batch)[0]]
    for first in range(0, len(labeled) - 3, 4):
        assert sorted(labeled[first : first + 4]) == [0, 1, 2, 3]  # an epoch


def test_every_answer_of_a_query_is_relevant_and_none_a_negative():
    data = make(make_task([(0, 1), (0,), (1,)]), batch_size=3, negatives=2, count=6)
    seen = set()
    for step in range(1, 9):
        batch = data.batch(step)
        queries, found = ids(batch)
        assert len(set(found)) == len(found)  # queries share a document
        assert batch["compared"].all()
        for query, row in zip(queries, batch["relevant"], strict=True):
            answers = {0: {0, 1}, 1: {0}, 2: {1}}[query]
            assert {found[i] for i in row.nonzero().flatten()} == answers & set(found) != set()
        for document, row in zip(found, batch["documents"], strict=True):
            assert len(row) == 100
            assert contains(documents()[document].tolist(), unwrap(row))
        seen.add(tuple(found))
    assert len(seen) > 1


def test_single_pairs_and_groups_have_the_same_terms():
    """In an epoch both compare every query and answer with the same negatives, each pair once."""
    tasks = make_task([(0, 1), (0,), (3,)]), make_task([(1,), (2,)], name="two", seed=1)
    pairs, grouped = make(*tasks, form="pairs", negatives=3), make(*tasks, form="grouped", negatives=3, batch_size=2)
    assert (pairs.units, grouped.units) == (6 * 4, 6)
    terms = {"pairs": [], "grouped": []}
    for name, data, steps in (("pairs", pairs, 6), ("grouped", grouped, 3)):
        for step in range(1, steps + 1):
            batch = data.batch(step)
            queries, found = ids(batch)
            assert len(batch["queries"]) == len(queries)
            assert len(batch["documents"]) == len(found)
            terms[name] += [(queries[q], found[d], bool(batch["relevant"][q, d])) for q, d in
                            batch["compared"].nonzero().tolist()]  # fmt: skip
    assert sorted(terms["pairs"]) == sorted(terms["grouped"])
    assert len(terms["pairs"]) == 24
    assert sum(relevant for _, _, relevant in terms["pairs"]) == 6
    for query, document, relevant in terms["pairs"]:
        assert (query < 3) == (document < 6)  # of the same task
        assert relevant == (document in {0: {0, 1}, 1: {0}, 2: {3}, 3: {7}, 4: {8}}[query])


def test_given_negatives_come_first_and_random_ones_of_the_epoch_fill_up(caplog):
    task = make_task(negatives=[(4, 2, 1), (5,), (), ()], count=40)
    data = make(task, form="grouped", negatives=2)
    assert data.negatives(0, 0) == [4, 2]
    assert data.negatives(0, 1) == data.negatives(0, 1) != data.negatives(1, 1)
    assert data.negatives(0, 1)[0] == 5
    drawn = [data.negatives(epoch, 1)[1] for epoch in range(300)]
    assert {*drawn} == {*range(40)} - {0, 5}
    assert all(len({*data.negatives(epoch, 2)}) == 2 for epoch in range(60))
    with caplog.at_level("INFO"):
        report_tasks([task], data.settings)
    assert "2 queries have given negatives; 3 of all have fewer than data.negatives" in caplog.text


@pytest.mark.parametrize("form", ["pairs", "grouped", "all"])
@pytest.mark.parametrize("passage_share", [0.0, 1.0])
def test_processes_share_the_batch_of_one(form, passage_share):
    idf = np.full(700, 2.0, dtype=np.float32)
    changes = {"form": form, "negatives": 3, "passage_share": passage_share, "idf": idf}
    whole = make(make_task(count=9), batch_size=6, **changes)
    shares = [make(make_task(count=9), batch_size=6, rank=rank, world=3, **changes) for rank in range(3)]
    for step in (1, 2, 3):
        expected, found = whole.batch(step), [share.batch(step) for share in shares]
        for side in ("queries", "documents"):
            rows = [row for batch in found for row in batch[side]]
            assert len(rows) == len(expected[side])
            assert all(np.array_equal(a, b) for a, b in zip(rows, expected[side], strict=True))
            assert max(len(batch[side]) for batch in found) - min(len(batch[side]) for batch in found) <= 1
        for batch in found:
            assert torch.equal(batch["relevant"], expected["relevant"])
            assert torch.equal(batch["compared"], expected["compared"])


def test_an_epoch_is_a_permutation_and_the_next_another():
    data = make(make_task([(i,) for i in range(6)]), batch_size=3)
    epochs = [ids(data.batch(2 * e + 1))[0] + ids(data.batch(2 * e + 2))[0] for e in range(4)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    assert data.steps_of(1) == 2
    assert data.steps_of(1.5) == 3
    assert make(form="pairs", negatives=3, batch_size=10, world=2).steps_of(1) == 2  # 16 pairs
    assert make(passage_share=0.5, batch_size=2).steps_of(1) == 4


def test_batches_repeat_by_seed_and_step_and_go_on_from_a_state():
    data = make(passage_share=0.5)
    batches = [data.next_batch() for _ in range(5)]
    assert data.state() == {"step": 5}
    other = make(passage_share=0.5)
    other.restore({"step": 3})
    for expected in batches[3:]:
        found = other.next_batch()
        for side in ("queries", "documents"):
            assert all(np.array_equal(a, b) for a, b in zip(found[side], expected[side], strict=True))
    assert not np.array_equal(make(seed=1).batch(1)["documents"][0], make().batch(1)["documents"][0])


def test_texts_are_cut_and_counted(caplog):
    data = make(document_window="first", document_tokens=50, query_tokens=6)
    batch = data.batch(1)
    for document, number in zip(batch["documents"], ids(batch)[1], strict=True):
        assert unwrap(document) == documents()[number][:48].tolist()
    assert {len(query) for query in batch["queries"]} == {6}
    with caplog.at_level("WARNING"):
        report_tasks([make_task()], data.settings)
    assert "6 of 6 documents exceed data.document_tokens=50: cut to their first tokens" in caplog.text
    assert "4 queries are cut to data.query_tokens=6" in caplog.text
    assert "passages" not in caplog.text
    with caplog.at_level("WARNING"):
        report_tasks([make_task()], make(query_tokens=6, passage_share=0.5).settings)
    assert "passages of more than 4 tokens are cut to data.query_tokens=6" in caplog.text


def test_query_dropout_prefers_rare_tokens_and_leaves_one():
    idf = np.full(500, 0.05, dtype=np.float32)
    idf[250:] = 8.0
    data, rng = make(idf=idf, passage_share=1.0), np.random.default_rng(0)
    query = np.arange(5, 500)
    kept = data._drop(query, rng)
    assert (kept >= 250).mean() > 0.8
    assert len(data._drop(np.array([5]), rng)) == 1
    assert min(map(len, data.batch(1)["queries"])) < 7  # passages have at least 5 tokens, and 2 around


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 2, "world": 3}, "data.batch_size=2 counts all processes together, and there are 3"),
        ({"negatives": 6}, "task 'one' has 6 documents, too few for data.negatives=6 besides the 1 that answer"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
