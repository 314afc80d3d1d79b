import numpy as np
import pytest

from m2bert.eval.tfidf import TfidfProjection


def test_the_projection_is_seeded_and_keeps_cosines():
    documents = [f"{a} {b} shared" for a in ("apple", "boat", "wall") for b in ("pear", "sail", "rain")]
    wide = TfidfProjection(4_000).fit(documents)
    exact = (wide.tfidf(documents) @ wide.tfidf(documents).T).toarray()
    vectors = wide.encode(documents, "document")
    assert vectors.shape == (9, 4_000)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors @ vectors.T, exact, atol=0.1)
    np.testing.assert_array_equal(vectors, TfidfProjection(4_000).fit(documents).encode(documents, "query"))
    other = TfidfProjection(4_000, seed=1).fit(documents).encode(documents, "document")
    assert np.abs(vectors - other).max() > 1e-3


def test_a_text_of_unknown_words_projects_to_zero():
    assert not TfidfProjection(8).fit(["apple pear"]).encode(["unseen", ""], "query").any()


def test_documents_without_words_and_widths_below_one_are_refused():
    with pytest.raises(ValueError, match="none of 2 documents has a word"):
        TfidfProjection(8).fit(["the", ""])
    with pytest.raises(ValueError, match="width=0"):
        TfidfProjection(0)


def test_no_texts_give_no_rows():
    assert TfidfProjection(8).fit(["apple pear"]).encode([], "query").shape == (0, 8)
