"""Vectors of whole documents: by a BERT of 20 tokens in whose vocabulary every word is a token, and by m2bert-small."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from m2bert.eval.encoders.policies import LateChunk
from m2bert.search import encoder as module
from m2bert.search.encoder import Encoder

WORDS = ["apple", "pear", "boat", "sail", "stone", "wall", "cloud", "rain", "river", "bridge", "horse", "saddle"]
LENGTHS = [3, 200, 18, 19, 57, 0, 40]
TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS, size)) for i, size in enumerate(LENGTHS)]
SMALL = Path(__file__).parents[2] / "models" / "m2bert-small"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained BERT that takes at most 20 tokens; sentence-transformers pools it by the mean."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=20, **sizes)).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=20).save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(folder, monkeypatch):
    monkeypatch.setattr(module, "FEWEST_TOKENS", 4)
    return Encoder(folder)


def test_every_word_is_in_the_span_of_some_vector_and_spans_are_in_order(encoder):
    for text, found in zip(TEXTS, encoder.encode_documents(TEXTS, vectors=3), strict=True):
        vectors, spans, tokens = found
        assert tokens == len(text.split()) + 2
        assert len(vectors) == len(spans)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        assert spans[0, 0] == 0
        assert spans[-1, 1] == len(text)
        assert (np.diff(spans[:, 0]) > 0).all()
        assert (spans[1:, 0] <= spans[:-1, 1]).all()
        for start, end in spans:
            assert set(text[start:end].split()) <= set(WORDS)  # no word is cut


def test_windows_overlap_by_an_eighth_and_are_equally_long(encoder):
    spans = encoder.encode_documents([TEXTS[1]], vectors=1)[0].spans
    words = [TEXTS[1][start:end].split() for start, end in spans]
    assert all(len(its) <= 18 for its in words)
    assert max(map(len, words)) - min(map(len, words)) <= len(words)
    for before, after in zip(words, words[1:], strict=False):
        assert before[-2:] == after[:2]
    assert sum(map(len, words)) == 200 + 2 * (len(words) - 1)


def test_a_vector_is_that_of_its_window_alone(encoder):
    text = TEXTS[1]
    whole = encoder.encode_documents([text], vectors=1)[0]
    windows = [text[start:end] for start, end in whole.spans]
    alone = np.concatenate([found.vectors for found in encoder.encode_documents(windows, vectors=1)])
    np.testing.assert_allclose(whole.vectors, alone, atol=1e-6)


def test_parts_are_pooled_from_the_words_of_their_spans(encoder):
    """Replacing the words outside of a span changes its vector by the context alone; without context, not at all."""
    embeddings = encoder.base.model[0].model.embeddings
    encoder.base.model[0].model.encoder.layer = encoder.base.model[0].model.encoder.layer[:0]  # no context
    embeddings.position_embeddings.weight.data.zero_()
    text = TEXTS[2]  # one window
    vectors, spans, _ = encoder.encode_documents([text], vectors=5)[0]
    assert len(spans) == 5
    whole = encoder.base.encode([text], "document")[0]
    for vector, (start, end) in list(zip(vectors, spans, strict=True))[1:-1]:  # the others hold a special token
        ids = encoder.base.model.tokenizer(text[start:end], add_special_tokens=False, return_tensors="pt")["input_ids"]
        mean = embeddings(ids)[0].mean(0).detach().numpy()
        added = mean / np.linalg.norm(mean) + whole
        np.testing.assert_allclose(vector, added / np.linalg.norm(added), atol=1e-5)


def test_vectors_do_not_depend_on_what_is_encoded_beside_them(encoder):
    together = encoder.encode_documents(TEXTS, vectors=3)
    for text, found in zip(TEXTS, together, strict=True):
        [alone] = encoder.encode_documents([text], vectors=3)
        np.testing.assert_array_equal(found.spans, alone.spans)
        np.testing.assert_allclose(found.vectors, alone.vectors, atol=1e-6)
    assert encoder.encode_documents([]) == []


def test_a_prompt_stands_before_every_window_and_is_in_no_span(encoder):
    encoder.base.model.prompts["document"] = "rain wall "
    encoder._overhead, encoder._room = 4, 16
    whole = encoder.encode_documents([TEXTS[1]], vectors=1)[0]
    windows = [TEXTS[1][start:end] for start, end in whole.spans]
    assert max(len(window.split()) for window in windows) <= 16
    alone = encoder.base.model.encode_document(windows)
    np.testing.assert_allclose(whole.vectors, alone / np.linalg.norm(alone, axis=1, keepdims=True), atol=1e-5)
    parts = encoder.encode_documents([TEXTS[1]], vectors=3)[0].spans
    assert parts[0, 0] == 0
    assert parts[-1, 1] == len(TEXTS[1])
    assert (np.diff(parts[:, 0]) > 0).all()


def test_a_long_text_is_cut_at_a_word_before_it_is_tokenized(encoder, monkeypatch):
    text = TEXTS[1]
    monkeypatch.setattr(module, "PORTION_CHARS", 200)
    vectors, spans, tokens = encoder.encode_documents([text, "boat"], vectors=2)[0]
    assert tokens == 202
    assert spans[0, 0] == 0
    assert spans[-1, 1] == len(text)
    assert (spans[1:, 0] <= spans[:-1, 1]).all()
    assert all(set(text[start:end].split()) <= set(WORDS) for start, end in spans)
    assert module._sections("x" * 450) == ["x" * 200, "x" * 200, "x" * 50]
    assert "".join(module._sections(text)) == text


def test_a_model_that_pools_one_token_gives_a_vector_a_window(encoder):
    encoder.base.model[1].pooling_mode = "cls"
    found = encoder.encode_documents(TEXTS)
    windows = [text[start:end] for text, its in zip(TEXTS, found, strict=True) for start, end in its.spans]
    rows = np.concatenate([its.vectors for its in found])
    np.testing.assert_allclose(rows, encoder.base.encode(windows, "document"), atol=1e-6)
    assert len(found[0].vectors) == 1
    assert len(found[1].vectors) > 10


def test_what_cannot_be_encoded_is_refused_by_name(encoder):
    with pytest.raises(ValueError, match=r"the query that begins 'boat boat .*has 32 tokens, and the model reads 20"):
        encoder.encode_queries(["boat", "boat " * 30])
    encoder.base.model[0].model.embeddings.word_embeddings.weight.data[:] = np.nan
    with pytest.raises(ValueError, match="the text that begins 'apple' is not finite"):
        encoder.encode_documents(["apple"])


def test_the_shipped_model_gives_evaluations_late_chunks():
    encoder = Encoder(SMALL)
    words = np.random.default_rng(0).choice(Path(module.__file__).read_text(encoding="utf-8").split(), 4000)
    long, short = " ".join(words[:1500]), " ".join(words[:150])
    expected = LateChunk(document=1).embed(encoder.base, [long])
    found, less = encoder.encode_documents([long, short])
    np.testing.assert_allclose(found.vectors, expected.rows, atol=1e-6)
    assert found.tokens == encoder.count_tokens([long])[0]
    assert len(less.vectors) == less.tokens // module.FEWEST_TOKENS
    assert encoder.encode_queries(["where does it end?"]).shape == (1, encoder.dimensions)


def test_threads_that_share_an_encoder_get_the_vectors_that_one_gets(encoder):
    def results(_=None):
        queries = [encoder.encode_queries([text]) for text in TEXTS if len(text.split()) <= 18]
        documents = [encoder.encode_documents([text], vectors=3)[0] for text in TEXTS]
        return [*queries, *(each for its in documents for each in its), encoder.count_tokens(TEXTS)]

    alone = results()
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(results, range(24)):
            for mine, expected in zip(found, alone, strict=True):
                np.testing.assert_array_equal(mine, expected)
