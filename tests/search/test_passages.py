"""The passage of a document that is shown for a query. Vectors are made by hand: no model is needed."""

import time

import numpy as np
import pytest

from m2bert.search.passages import LONGEST_SENTENCE_CHARS, PASSAGE_WORDS, best_passage

FILLER = "The committee met again and spoke about other matters for a while. "
NEEDLE = "The lease of the harbor ends in October."
ASKED = np.array([1.0, 0.0], dtype=np.float32)


def passage_of(text, query="when does the lease end?", best=None, parts=10):
    """Return the best passage by words, and by vectors of equal parts of which number `best` alone is near."""
    vectors = np.tile(np.float32([0, 1]), (parts, 1))
    if best is not None:
        vectors[best] = ASKED
    edges = np.linspace(0, len(text), parts + 1).astype(np.int64)
    return slice(*best_passage(query, ASKED, text, vectors, np.stack([edges[:-1], edges[1:]], axis=1)))


@pytest.mark.parametrize("place", [0, 17, 99])
def test_words_find_the_sentence_wherever_it_stands(place):
    sentences = [FILLER] * 100
    sentences[place] = NEEDLE + " "
    text = "".join(sentences)
    found = passage_of(text)
    shown = text[found]
    assert NEEDLE in shown
    assert len(shown.split()) <= PASSAGE_WORDS
    assert shown[0] == "T"  # a passage begins and ends with a sentence
    assert shown[-1] == "."


@pytest.mark.parametrize("best", [0, 4, 9])
def test_vectors_decide_where_words_do_not(best):
    text = FILLER * 200
    found = passage_of(text, "weather on the moon", best)
    assert abs((found.start + found.stop) / 2 / len(text) - (best + 0.5) / 10) < 0.1


def test_words_and_vectors_decide_together():
    sentences = [FILLER] * 100
    sentences[25] = sentences[75] = "The lease is long. "
    text = "".join(sentences)
    for best, place in ((2, 0.25), (7, 0.75)):
        found = passage_of(text, best=best)
        assert abs((found.start + found.stop) / 2 / len(text) - place) < 0.05


def test_a_rare_word_of_the_query_counts_more_than_a_frequent_one():
    sentences = ["The lease is paid. "] * 50 + [FILLER] * 20 + ["In October it rains. "] + [FILLER] * 20
    text = "".join(sentences)
    found = passage_of(text, "lease October")
    assert "October" in text[found]


def test_of_a_long_document_the_stretches_are_read_that_may_answer():
    sentences = [FILLER] * 20_000
    sentences[7_000], sentences[15_000] = NEEDLE + " ", "It rained on the harbor. "
    text = "".join(sentences)
    start = time.process_time()
    assert NEEDLE in text[passage_of(text, parts=300)]  # by words
    found = passage_of(text, "weather on the moon", best=222, parts=300)  # by vector
    assert abs(found.start / len(text) - 222.5 / 300) < 0.01
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "text", ["x" * 5_000, "港の契約は十月に終わる" * 500, "港の契約は十月に終わる。" * 500, "1\t2\n" * 4_000]
)
def test_a_text_without_sentences_has_a_short_passage(text):
    found = passage_of(text)
    assert 0 < found.stop - found.start <= 2 * LONGEST_SENTENCE_CHARS


@pytest.mark.parametrize("text", ["", " \n ", "a", "İstanbul: the lease ends. " * 30, FILLER])
def test_small_and_odd_texts(text):
    found = passage_of(text)
    assert 0 <= found.start <= found.stop <= len(text)
    assert bool(text.strip()) == bool(text[found].strip())


def test_passages_do_not_reach_over_what_was_not_read():
    """Between two stretches lies text that was left out."""
    text = FILLER * 4_000
    vectors = np.tile(np.float32([0, 1]), (100, 1))
    vectors[::12] = ASKED
    edges = np.linspace(0, len(text), 101).astype(np.int64)
    found = slice(*best_passage("?", ASKED, text, vectors, np.stack([edges[:-1], edges[1:]], axis=1)))
    assert len(text[found].split()) <= PASSAGE_WORDS
