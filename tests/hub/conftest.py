"""A tokenizer of a few words."""

import pytest
from transformers import BertTokenizerFast

WORDS = ["a", "about", "and", "budget", "committee", "meeting", "minutes", "of", "report", "the"]


@pytest.fixture
def tokenizer():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)})
