"""Examples are what they claim: passages of documents, full rows of joined documents, each once an epoch."""

from types import SimpleNamespace

import numpy as np
import pytest

from m2bert.train.text.examples import LocalExamples, Rows, random_generator
from m2bert.train.text.tokens import TokenStore

CLS, SEP = 2, 3
TOKENIZER = SimpleNamespace(cls_token_id=CLS, sep_token_id=SEP)


def store_of(lengths):
    """Documents in which every token is another: token, document and place can be told from its id."""
    lengths = np.array(lengths)
    tokens = np.arange(10, 10 + lengths.sum(), dtype=np.uint32)
    return TokenStore(tokens, np.cumsum(lengths) - lengths, lengths, np.arange(len(lengths), dtype=np.uint64), "")


def examples(lengths, max_tokens=40, **settings):
    return LocalExamples("web", store_of(lengths), max_tokens, TOKENIZER, (0, 1), **settings)


def documents_of(store):
    return [store.tokens[s : s + n].tolist() for s, n in zip(store.starts, store.lengths, strict=True)]


LENGTHS = [5, 8, 30, 39, 100, 200, 12, 38, 1000]


def test_a_variable_example_is_a_passage_of_one_document():
    data = examples(LENGTHS)
    documents = documents_of(data.store)
    for epoch in range(20):
        used = []
        for row in data.take("variable", 8):
            assert row[0] == CLS
            assert row[-1] == SEP
            content = row[1:-1].tolist()
            number = next(i for i, document in enumerate(documents) if content[0] in document)
            place = documents[number].index(content[0])
            assert documents[number][place : place + len(content)] == content
            assert 10 <= len(row) <= min(40, len(documents[number]) + 2)
            used.append(number)
        assert sorted(used) == [1, 2, 3, 4, 5, 6, 7, 8], epoch  # once each, but for the one shorter than 10 tokens


def test_lengths_are_log_uniform_and_places_uniform():
    data = examples([100_000] * 50, max_tokens=1000)
    rows = data.take("variable", 3000)
    lengths = np.array([len(row) for row in rows])
    assert lengths.min() == 10
    assert lengths.max() > 990
    for quarter in (1, 2, 3):  # of the logarithm
        assert (lengths < 10 * 100 ** (quarter / 4)).mean() == pytest.approx(quarter / 4, abs=0.04)
    starts = np.array([(row[1] - 10) % 100_000 for row in rows])
    assert [(starts < 100_000 * share).mean() for share in (0.25, 0.5, 0.75)] == pytest.approx(
        [0.25, 0.5, 0.75], abs=0.04
    )


def test_the_rows_of_an_epoch_are_the_documents_one_after_another():
    data = examples(LENGTHS)
    documents = documents_of(data.store)
    total = sum(LENGTHS) + len(LENGTHS)
    assert data.sizes["maximum"] == total // 38
    orders = []
    for epoch in range(3):
        made = Rows(data.store, 40, SEP, random_generator("maximum", 0, 1, epoch))
        rows = data.take("maximum", data.sizes["maximum"])
        assert all(len(row) == 40 and row[0] == CLS and row[-1] == SEP for row in rows)
        stream = np.concatenate([rows[i][1:-1] for i in np.argsort(made.order)]).tolist()
        joined = [token for i in made.documents for token in [*documents[i], SEP]]
        assert stream == joined[: total // 38 * 38]
        orders.append((made.documents.tolist(), made.order.tolist()))
    assert orders[0] != orders[1] != orders[2]


def test_a_row_may_hold_any_number_of_documents():
    for lengths in ([1] * 500, [37] * 9, [38, 38, 38], [36, 1, 36, 1], [76, 2, 5, 33]):
        data = examples(lengths)
        rows = data.take("maximum", data.sizes["maximum"])
        tokens = [token for row in rows for token in row[1:-1].tolist() if token != SEP]
        assert len(set(tokens)) == len(tokens)
        separators = sum((row[1:-1] == SEP).sum() for row in rows)
        assert len(tokens) + separators == 38 * len(rows)
        assert separators >= len(lengths) - 1 - 38


@pytest.mark.parametrize("kind", ["variable", "maximum"])
def test_processes_share_the_examples_of_one_and_go_on_from_a_position(kind):
    alone = examples(LENGTHS).take(kind, 60)  # several epochs
    taken = []
    for rank in range(3):
        first, resumed = (examples(LENGTHS, rank=rank, world=3) for _ in range(2))
        rows = first.take(kind, 7)
        resumed.restore(first.state())
        taken.append([*rows, *resumed.take(kind, 13)])
    together = [taken[i % 3][i // 3] for i in range(60)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_sources_and_seeds_draw_differently():
    rows = [
        LocalExamples("web", store_of(LENGTHS), 40, TOKENIZER, seed).take("maximum", 8)
        for seed in ((0, 1), (0, 2), (1, 1))
    ]
    assert len({np.concatenate(row).tobytes() for row in rows}) == 3


def test_too_little_text_is_named():
    with pytest.raises(ValueError, match="source web: no maximum example .*max_tokens=40"):
        examples([4, 4, 4, 6]).take("maximum", 1)
    with pytest.raises(ValueError, match="source web: no variable example .* a document of 8"):
        examples([7] * 50).take("variable", 1)
    assert len(examples([8]).take("variable", 1)[0]) == 10
