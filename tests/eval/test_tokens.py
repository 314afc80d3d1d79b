"""Long texts are tokenized word by word. The tokens and their places are those that the whole text has."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers

from m2bert.eval.encoders import tokens as module
from m2bert.eval.encoders.tokens import Tokens, WordTokenizer

SMALL = Path(__file__).parents[2] / "models" / "m2bert-small"
LETTERS = "abHI -_'.,?[]\t\n\r\0\x1c\x1f\x85\xa0\u2028\u3000éÉßΣςİı\u0301\u0308\u200b\u200d\u00ad\ufffd…—№½Ⅷ中文。Ａ🙂"
WORDS = ["the ", " meeting, ", "[MASK]", " [UNK]", "[SEP] ", "https://x.org/?q=1 ", "x" * 120, "  "]


@pytest.fixture(scope="module")
def backend():
    return tokenizers.Tokenizer.from_file(str(SMALL / "tokenizer.json"))


def random_text(generator):
    pieces = [*LETTERS, *WORDS]
    return "".join(generator.choice(pieces, generator.integers(0, 80)))


def test_tokens_and_their_places_are_those_of_the_whole_text(backend):
    tokenizer, generator = WordTokenizer(backend), np.random.default_rng(0)
    for text in ["", " ", *(random_text(generator) for _ in range(500))]:
        expected, found = backend.encode(text, add_special_tokens=False), tokenizer(text)
        assert found.ids.tolist() == expected.ids
        assert list(map(tuple, found.spans.tolist())) == expected.offsets


def test_words_are_forgotten_when_they_are_many(backend, monkeypatch):
    monkeypatch.setattr(module, "WORDS_KEPT", 10)
    tokenizer, generator = WordTokenizer(backend), np.random.default_rng(1)
    texts = [random_text(generator) for _ in range(20)]
    for text in texts + texts:
        assert tokenizer(text).ids.tolist() == backend.encode(text, add_special_tokens=False).ids
        assert len(tokenizer._numbers) <= 10


def test_parts_and_sums_of_tokens_keep_their_places(backend):
    encoding = backend.encode("one meeting, two meetings", add_special_tokens=False)
    tokens = Tokens.of(encoding)
    for part in (slice(1, 3), slice(2, None), slice(0, 0)):
        assert tokens[part].ids.tolist() == encoding.ids[part]
        assert list(map(tuple, tokens[part].spans.tolist())) == encoding.offsets[part]
    both = tokens[:2] + tokens[3:]
    assert both.ids.tolist() == encoding.ids[:2] + encoding.ids[3:]
    assert list(map(tuple, both.spans.tolist())) == encoding.offsets[:2] + encoding.offsets[3:]


def test_a_tokenizer_that_looks_beyond_a_space_is_not_taken_apart(backend):
    assert WordTokenizer.is_exact(backend)
    for change in (
        {"pre_tokenizer": tokenizers.pre_tokenizers.Metaspace()},
        {"normalizer": tokenizers.normalizers.NFKC()},
        {"model": tokenizers.models.BPE()},
    ):
        other = tokenizers.Tokenizer.from_str(backend.to_str())
        for name, value in change.items():
            setattr(other, name, value)
        assert not WordTokenizer.is_exact(other)
    other = tokenizers.Tokenizer.from_str(backend.to_str())
    other.add_tokens(["two words"])
    assert not WordTokenizer.is_exact(other)
