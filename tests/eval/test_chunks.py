import random
import re

import numpy as np
import pytest

from m2bert.eval.encoders.policies import chunk_texts, cut


class Letters:
    """Tokens are single letters; a text that begins with a small one, as if inside a word, costs a surcharge."""

    name, max_tokens = "letters", 12

    def __init__(self, surcharge=0):
        self.surcharge = surcharge

    def token_spans(self, texts):
        return [np.array([match.span() for match in re.finditer(r"\S", text)]).reshape(-1, 2) for text in texts]

    def count_tokens(self, texts, task):
        extra = [self.surcharge if text[:1].islower() else 0 for text in texts]
        return np.array([2 + len(re.findall(r"\S", text)) + more for text, more in zip(texts, extra, strict=True)])


def spans_of(text):
    return Letters().token_spans([text])[0]


def test_words_of_one_token_give_windows_of_exactly_that_many():
    text = " ".join("abcdefghij")
    assert cut(text, spans_of(text), 4) == ["a b c d", "e f g h", "i j"]
    assert cut(text, spans_of(text), 10) == [text]


def test_tokens_are_counted_whether_or_not_they_are_words():
    assert cut("abcdef ghi jk", spans_of("abcdef ghi jk"), 4) == ["abcd", "ef gh", "i jk"]


def test_a_chunk_that_grows_becomes_two_that_overlap():
    (chunks,) = chunk_texts(Letters(surcharge=2), ["Abcdefgh ijklmnop"], 10)
    assert chunks == ["Abcdefgh", "ijklmn", "klmnop"]


def test_a_chunk_that_cannot_get_shorter_stays():
    """A character of several tokens, as Hangul has in a vocabulary without it."""

    class Thirds(Letters):
        def token_spans(self, texts):
            return [np.repeat(spans, 3, axis=0) for spans in super().token_spans(texts)]

        def count_tokens(self, texts, task):
            return np.array([2 + 3 * len(text.replace(" ", "")) for text in texts])

    assert chunk_texts(Thirds(), ["a b c"], 6) == [["a b", "b c", "c"]]


def test_a_stride_makes_chunks_overlap_and_the_last_one_bring_something_new():
    text = " ".join("abcdefgh")
    assert cut(text, spans_of(text), 4, 2) == ["a b c d", "c d e f", "e f g h"]
    assert cut(text, spans_of(text), 4, 3) == ["a b c d", "d e f g", "g h"]
    assert cut(text, spans_of(text), 4, 4) == cut(text, spans_of(text), 4)


@pytest.mark.parametrize("text", ["", "  \n "])
def test_a_text_without_tokens_is_one_empty_chunk(text):
    assert cut(text, spans_of(text), 4) == [""]


@pytest.mark.parametrize("seed", range(20))
def test_every_token_is_in_some_chunk_and_no_chunk_is_too_long(seed):
    generator = random.Random(seed)
    letters = [chr(code) for code in range(0x100, 0x600) if chr(code).isalpha()]  # upper and lower case, each once
    generator.shuffle(letters)
    words = ["".join(letters.pop() for _ in range(generator.randint(1, 25))) for _ in range(generator.randint(1, 30))]
    encoder, tokens = Letters(surcharge=2), generator.randint(6, 20)
    stride = generator.choice([None, 1, tokens - 2, generator.randint(1, tokens - 2)])
    for text in (" ".join(words), words[0], "  ".join(reversed(words))):
        (chunks,) = chunk_texts(encoder, [text], tokens, stride)
        assert encoder.count_tokens(chunks, "document").max() <= tokens
        assert all(chunk in text for chunk in chunks)
        assert set("".join(chunks)) >= set("".join(text.split()))
