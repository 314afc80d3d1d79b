import logging
import shutil

import numpy as np
import pytest

from m2bert_eval.encoders import SentenceTransformerEncoder, TfidfProjection, token_batches

TEXTS = ["apple pear", "", "boat", "stone wall cloud rain " * 10, "river bridge horse"]


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return SentenceTransformerEncoder(tiny_model)


def test_rows_are_float32_unit_vectors_in_the_order_of_the_texts(encoder):
    vectors = encoder.encode(TEXTS, "document")
    alone = np.concatenate([encoder.encode([text], "document") for text in TEXTS])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


def test_a_bfloat16_model_gives_exact_unit_vectors(tiny_model):
    encoder = SentenceTransformerEncoder(tiny_model)
    encoder.model.bfloat16()
    vectors = encoder.encode(TEXTS, "query")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_no_document_is_truncated_in_silence(encoder, caplog):
    with caplog.at_level(logging.WARNING):
        encoder.encode(TEXTS, "document")
    assert "1 of 5 document texts cut to 12 tokens" in caplog.text
    assert encoder.count_truncated(TEXTS, "document") == 1
    assert encoder.count_tokens(TEXTS, "document").tolist() == [4, 2, 3, 42, 5]


def test_max_tokens_lowers_what_is_read(tiny_model):
    short = SentenceTransformerEncoder(tiny_model, max_tokens=3)
    assert short.count_truncated(TEXTS, "query") == 3
    first, second = short.encode(["apple pear", "apple wall"], "query")
    np.testing.assert_allclose(first, second, atol=1e-6)
    with pytest.raises(ValueError, match="max_tokens=0"):
        SentenceTransformerEncoder(tiny_model, max_tokens=0)


def test_the_prompt_of_the_task_is_used_and_counted(tiny_model, monkeypatch):
    encoder = SentenceTransformerEncoder(tiny_model)
    without = encoder.encode(["boat"], "query")
    monkeypatch.setitem(encoder.model.prompts, "query", "horse saddle ")
    assert np.abs(encoder.encode(["boat"], "query") - without).max() > 1e-3
    np.testing.assert_allclose(encoder.encode(["boat"], "document"), without, atol=1e-6)
    assert encoder.count_tokens(["boat"], "query").tolist() == [5]


def test_no_texts_give_no_rows(encoder):
    assert encoder.encode([], "query").shape == (0, 16)


def test_only_a_folder_may_bring_code(tiny_model, monkeypatch):
    import sentence_transformers

    trusted = []
    original = sentence_transformers.SentenceTransformer

    def spy(name, trust_remote_code):
        trusted.append(trust_remote_code)
        return original(str(tiny_model))

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", spy)
    SentenceTransformerEncoder(tiny_model)
    SentenceTransformerEncoder("organisation/model")
    assert trusted == [True, False]


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^encoder '.*' is no model folder") as caught:
        SentenceTransformerEncoder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(5))
def test_batches_hold_every_text_once_within_the_budget(seed):
    lengths = np.random.default_rng(seed).integers(1, 300, size=60)
    lengths[7] = 5_000
    batches = token_batches(lengths, 1_000)
    assert sorted(i for batch in batches for i in batch) == list(range(60))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= 1_000 for batch in batches)
    assert len(batches) <= 2 * lengths.clip(max=1_000).sum() / 1_000 + 1


def test_tfidf_projection_is_seeded_and_keeps_cosines():
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


def test_a_folder_with_other_tensors_than_its_model_reads_is_refused(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    cases = [
        (
            "lacks .*encoder.layer.1.output.dense.weight",
            {k: v for k, v in tensors.items() if "layer.1.output.dense.w" not in k},
        ),
        ("unexpectedly, .*novelty", tensors | {"novelty": tensors["embeddings.LayerNorm.bias"].clone()}),
    ]
    for message, changed in cases:
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            SentenceTransformerEncoder(folder)
    save_file(
        {k: v for k, v in tensors.items() if "pooler" not in k}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    SentenceTransformerEncoder(folder)  # sentence-transformers pools by itself
