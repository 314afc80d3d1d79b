"""Which tokenizer goes along: one that has words, works, and pads as the model was trained to."""

import json

import pytest
import torch
from convert_cases import WORDS, go_offline, record_of, write_source
from original_model import Fixture, needs_fixtures
from tokenizers import Tokenizer, models, pre_tokenizers

from m2bert.hub.convert import check as parity
from m2bert.hub.convert import run as conversion
from m2bert.hub.convert.run import convert_source

pytestmark = needs_fixtures
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}


@pytest.fixture
def source(monkeypatch, tmp_path):
    go_offline(monkeypatch, tmp_path)
    return write_source(tmp_path / "clone", Fixture("base_full"))


@pytest.fixture
def idle(monkeypatch):
    """The refusal comes before the work."""
    monkeypatch.setattr(conversion, "check_parity", None)


def write_fast(folder, split: bool = True, unknown: str = "[UNK]", **settings):
    """tokenizer.json of whole words."""
    words = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=unknown))
    if split:
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(FAST | settings))


def test_settings_without_a_vocabulary_are_no_tokenizer(tmp_path, source):
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    convert_source(str(source), tmp_path / "out")
    assert record_of(tmp_path / "out")["tokenizer"] is None
    assert not list((tmp_path / "out").glob("tokenizer*"))
    with pytest.raises(ValueError, match="has none of tokenizer.json, vocab.txt"):
        convert_source(str(source), tmp_path / "other", tokenizer=str(source))


@pytest.mark.parametrize("words", [[], WORDS[:5]])
@pytest.mark.usefixtures("idle")
def test_a_vocabulary_without_words_is_refused(tmp_path, source, words):
    (source / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(ValueError, match="the source's own.* has no words beside special tokens"):
        convert_source(str(source), tmp_path / "out")


@pytest.mark.usefixtures("idle")
def test_a_tokenizer_that_pads_otherwise_is_refused_with_both_ids(tmp_path, source):
    (source / "vocab.txt").write_text("\n".join([*WORDS[1:], "[PAD]"]))
    with pytest.raises(ValueError, match="pads with id 11 but the model has pad_token_id=0; .*--tokenizer.*--config"):
        convert_source(str(source), tmp_path / "out")
    (source / "vocab.txt").unlink()
    write_fast(source, pad_token=None)
    with pytest.raises(ValueError, match="pads with id None but the model has pad_token_id=0"):
        convert_source(str(source), tmp_path / "out")


def test_a_configuration_without_padding_takes_the_tokenizers(tmp_path, source):
    configuration = json.loads((source / "config.json").read_text())
    (source / "vocab.txt").write_text("\n".join([*WORDS[1:], "[PAD]"]))
    for value in (11, None):
        (source / "config.json").write_text(json.dumps(configuration | {"pad_token_id": value}))
        convert_source(str(source), tmp_path / f"out-{value}")
        assert record_of(tmp_path / f"out-{value}")["tokenizer"] == "the source's own"


@pytest.mark.usefixtures("idle")
def test_a_tokenizer_that_fails_on_a_sentence_is_refused(tmp_path, source):
    write_fast(source, unknown="[NOT THERE]")
    with pytest.raises(ValueError, match="the source's own.* fails on a sentence"):
        convert_source(str(source), tmp_path / "out")
    Tokenizer(models.BPE({"[PAD]": 0, "[UNK]": 1, "zz": 2}, [])).save(str(source / "tokenizer.json"))
    with pytest.raises(ValueError, match="gives no tokens for 'The committee"):
        convert_source(str(source), tmp_path / "out")


@pytest.mark.parametrize("settings", [True, False])
@pytest.mark.usefixtures("idle")
def test_a_vocabulary_is_not_read_from_a_file_that_is_named_in_its_place(tmp_path, source, settings):
    write_fast(source)
    content = json.loads((source / "tokenizer.json").read_text())
    (tmp_path / "notes.txt").write_text("\n".join([*WORDS, "private"]))
    content["model"]["vocab"] = str(tmp_path / "notes.txt")
    (source / "tokenizer.json").write_text(json.dumps(content))
    if not settings:
        (source / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="tokenizer .* cannot be read.*model.vocab"):
        convert_source(str(source), tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["NaN", "null", "[" * 9000, '{"tokenizer_class": 1e308}', '{"model_max_length": "512"}']
)
@pytest.mark.usefixtures("idle")
def test_settings_of_another_form_are_one_line(tmp_path, source, text):
    write_fast(source)
    (source / "tokenizer_config.json").write_text(text)
    with pytest.raises(ValueError, match="clone.* cannot be read .*tokenizer_config.json"):
        convert_source(str(source), tmp_path / "out")


def test_texts_are_recorded_with_the_tokens_that_they_have(tmp_path, source):
    write_fast(source, split=False)  # a text is one unknown word
    convert_source(str(source), tmp_path / "out")
    assert [row["tokens"] for row in record_of(tmp_path / "out")["masked"]["cosine"]] == [1, 1]


def test_texts_may_differ_in_length():
    class Model:
        class config:
            max_position_embeddings, vocab_size, pad_token_id, padding = 64, 50, 0, "visible"

        def __call__(self, ids, *_):
            return type("Outputs", (), {"pooler_output": torch.ones(1, 4)})

    def tokenizer(texts, max_length, **_):
        return {"input_ids": [[7] * min(max_length, 9 + index) for index in range(len(texts))]}

    assert parity.compare_paddings(Model(), tokenizer)["cosine"][0]["tokens"] == 9
