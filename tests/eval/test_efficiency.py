import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m2bert.eval.analyses.efficiency import measure_efficiency, text_of_length
from m2bert.eval.encoders.policies import parse_policy

ABOUT = {"system": "fake / truncate"}
MODEL_SECONDS, TOKENIZER_SECONDS = 2.0, 5.0


class Clock:
    """Stands still but for what the model and the tokenizer take."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(Clock, "now", 0.0)
    monkeypatch.setattr("m2bert.eval.analyses.efficiency.time", Clock())


class Slow(torch.nn.Module):
    """Takes MODEL_SECONDS a call, most of it in a module of its own."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, lengths):
        Clock.now += MODEL_SECONDS
        return self.inner(lengths[:, None].repeat(1, 4))


class WordEncoder:
    """A token is a character of a word beside two special ones; tokenizing takes TOKENIZER_SECONDS."""

    name, fingerprint, dimensions = "fake", "0" * 64, 4

    def __init__(self, max_tokens=None, module=None):
        self.max_tokens, self.module = max_tokens, module

    def count_tokens(self, texts, task):
        Clock.now += TOKENIZER_SECONDS
        return np.array([2 + sum(map(len, text.split())) for text in texts])

    def token_spans(self, texts):
        places = [[(i, i + 1) for i, character in enumerate(text) if character != " "] for text in texts]
        return [np.array(found).reshape(-1, 2) for found in places]

    def encode(self, texts, task, max_tokens=None):
        lengths = torch.tensor([float(len(text)) for text in texts])
        rows = self.module(lengths) if self.module else lengths[:, None].repeat(1, 4)
        return torch.nn.functional.normalize(rows, dim=1).detach().numpy()


def test_a_text_has_exactly_the_tokens_asked_for():
    encoder = WordEncoder()
    for tokens in (3, 4, 64, 129, 1_000):
        text = text_of_length(encoder, ["seven", "words", "repeat", "each", "other", "over", "again"], tokens)
        assert encoder.count_tokens([text], "document") == [tokens]


def test_the_model_and_the_tokenizer_are_timed_apart():
    encoder = WordEncoder(max_tokens=34, module=Slow())
    record = measure_efficiency(encoder, parse_policy("truncate"), ["word"], [18, 66], ABOUT, repeats=3)
    assert [row["tokens"] for row in record["rows"]] == [18, 66]
    assert [row["seen_share"] for row in record["rows"]] == [1.0, 0.5]
    for row in record["rows"]:
        assert row["repeats"] == 3
        assert (row["encode_seconds"], row["tokenize_seconds"]) == (MODEL_SECONDS, TOKENIZER_SECONDS)
        assert row["total_seconds"] == MODEL_SECONDS + 2 * TOKENIZER_SECONDS  # and what the special tokens take
    assert (record["kind"], record["device"], record["dtype"]) == ("efficiency", "cpu", "float32")
    assert record["threads"] == torch.get_num_threads()
    json.dumps(record)
    everywhere = torch.nn.modules.module
    assert not any([encoder.module._forward_hooks, encoder.module._forward_pre_hooks])
    assert not any([everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks])


def test_what_cannot_be_timed_is_refused():
    policy, pairs, mute = parse_policy("truncate"), WordEncoder(module=Slow()), SimpleNamespace()
    mute.name, mute.max_tokens, mute.encode = "api", None, WordEncoder(module=Slow()).encode
    pairs.count_tokens = lambda texts, task: np.array([2 * len(texts[0].split())])
    for encoder, words, tokens, named in (
        (WordEncoder(), ["word"], 18, "'fake' shows no tokenizer or runs no torch module"),
        (mute, ["word"], 18, "'api' shows no tokenizer"),
        (WordEncoder(module=Slow()), ["word"], 2, "makes no text of 2 tokens"),
        (WordEncoder(module=Slow()), [], 10, "0 words"),
        (pairs, ["word"], 5, "makes no text of 5 tokens"),
    ):
        with pytest.raises(ValueError, match=named):
            measure_efficiency(encoder, policy, words, [tokens], ABOUT)
