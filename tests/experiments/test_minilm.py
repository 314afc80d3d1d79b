"""The pairs on which experiments/m2bert_small/minilm.py tunes a model: chunks, passages, the documents of a step."""

import re
from collections import Counter

import numpy as np
import pytest

from m2bert.eval.tasks.schema import make_task

TOKENS = 10  # of a chunk


@pytest.fixture(autouse=True)
def recipe(script, monkeypatch):
    module = script("experiments/m2bert_small/minilm.py")
    monkeypatch.setattr(module, "PASSAGE_TOKENS", (3, 6))
    return module


def word_spans(texts):
    return [np.array([word.span() for word in re.finditer(r"\S+", text)]).reshape(-1, 2) for text in texts]


def words(name, count):
    return " ".join(f"{name}_{i}" for i in range(count))


def places(text):
    """Return the places of words in their document."""
    return [int(word.rpartition("_")[2]) for word in text.split()]


def task_of(name, answers=lambda i: [i], documents=6):
    """Documents of 50 words, each word of its own document and place; a query a document."""
    pids = [f"{name}{i}" for i in range(documents)]
    queries = [{"qid": f"q-{pid}", "query": f"about {pid}", "answer_pids": [pids[j] for j in answers(i)]}
               for i, pid in enumerate(pids)]  # fmt: skip
    return make_task(name, "train", queries, [{"pid": pid, "passage": words(pid, 50)} for pid in pids])


@pytest.fixture
def batches(recipe):
    def make(*tasks, count=100):
        sources = [recipe.source_of(task) for task in tasks]
        return [recipe.make_batch(sources, word_spans, TOKENS, 4, np.random.default_rng([0, i])) for i in range(count)]

    return make


def labeled(batches):
    return [pair for batch in batches for pair in batch if pair["query"].startswith("about")]


def test_a_step_is_of_distinct_documents_of_one_task_and_every_task_has_its_turn(batches):
    seen = Counter()
    for batch in batches(task_of("a"), task_of("b", documents=24)):
        documents = [pair["document"].split("_")[0] for pair in batch]
        assert len({*documents}) == 4
        seen[documents[0][0]] += 1
        assert {document[0] for document in documents} == {documents[0][0]}
    assert 20 < seen["a"] < 46  # of 100; the root of the sizes says a third


def test_labeled_queries_have_their_document_and_half_of_the_chunks_are_the_first(batches):
    pairs = labeled(batches(task_of("a")))
    assert 160 < len(pairs) < 240  # half of 400
    assert all(pair["document"].startswith(pair["query"].removeprefix("about ") + "_") for pair in pairs)
    starts = Counter(places(pair["document"])[0] for pair in pairs)
    assert sorted(starts) == [0, 10, 20, 30, 40]
    assert 0.5 < starts[0] / len(pairs) < 0.7  # a random one is the first in a fifth of the cases
    assert all(len(pair["document"].split()) == TOKENS for pair in pairs)


def test_a_passage_is_cut_out_of_the_document(recipe):
    text, around, rng = words("a", 50), 0, np.random.default_rng(0)
    for _ in range(200):
        passage, chunk = recipe.passage_and_chunk(text, word_spans([text])[0], TOKENS, rng)
        own, rest = places(passage), places(chunk)
        assert own == list(range(own[0], own[-1] + 1))
        assert 3 <= len(own) <= 6
        assert len(rest) == TOKENS or rest[-1] == 49 or own[-1] == 49  # the last chunk may be shorter
        kept = [i for i in range(50) if i not in own]
        assert rest == kept[kept.index(rest[0]) :][: len(rest)]
        around += own[0] - 1 in rest or own[-1] + 1 in rest
    assert 100 < around < 180  # half by choice, and sometimes by chance


def test_a_passage_is_at_most_half_of_a_short_document_and_shorter_ones_are_left_out(recipe):
    passage, chunk = recipe.passage_and_chunk("a b c d", word_spans(["a b c d"])[0], 8, np.random.default_rng(1))
    assert len(passage.split()) == len(chunk.split()) == 2
    documents = [{"pid": "1", "passage": words("a", 5)}, {"pid": "2", "passage": words("b", 6)}]
    task = make_task("t", "train", [{"qid": "q", "query": "x", "answer_pids": ["1"]}], documents)
    assert recipe.source_of(task).pids == ["2"]


def test_a_query_that_two_documents_of_the_step_answer_is_not_asked_and_a_seed_makes_the_same_pairs(batches):
    both = task_of("a", answers=lambda i: [i, (i + 1) % 4], documents=4)  # a step has all four
    assert not labeled(batches(both))
    assert batches(both, count=5) == batches(both, count=5)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [("--tasks", "test_b", "test_b"), ("--data", "data/test", "data/test"), ("--output", ".", "working folder")],
)
def test_bad_input_is_named_before_anything_is_done(recipe, name, value, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").touch()
    given = {"--model": ".", "--data": "data", "--tasks": "a", "--steps": "1", "--output": "out", name: value}
    with pytest.raises(ValueError, match=named):
        recipe.main([word for option in given.items() for word in option])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
