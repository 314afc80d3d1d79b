"""The models that ship: each a complete folder, with this version's code, that finds what it should."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

ROOT = Path(__file__).parents[1]
SMALL, MINI = (ROOT / "models" / name for name in ("m2bert-small", "m2bert-mini"))
MOST_BYTES = 40_000_000
DOCUMENTS = [
    "The council approved the budget for a new bridge across the river. " * 40,
    "Whisk the eggs with sugar, fold in the flour and bake the cake. " * 40,
    "The telescope recorded the spectrum of a distant galaxy. " * 40,
]


@pytest.fixture(scope="module", params=[SMALL, MINI], ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture(scope="module")
def model(folder):
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def test_its_code_is_this_version_s(folder):
    for source in (ROOT / "modeling_m2bert").glob("*.py"):
        if source.name != "__init__.py":
            assert (folder / source.name).read_bytes() == source.read_bytes(), f"export the model again: {source.name}"


def test_it_is_small_and_its_filters_are_float32(folder):
    assert (folder / "model.safetensors").stat().st_size <= MOST_BYTES
    with safe_open(folder / "model.safetensors", "pt") as file:
        filters = [name for name in file.keys() if "filter." in name]  # noqa: SIM118
        assert filters
        assert all(file.get_slice(name).get_dtype() == "F32" for name in filters)


def test_it_reads_16384_tokens(model, folder):
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 16384
    assert model.max_seq_length == 16384
    filler = "filler words of no use " * 2400
    assert 12_000 < len(model.tokenizer(filler)["input_ids"]) < 16_384
    assert (model.encode_document(filler + "zebra") != model.encode_document(filler)).any()


def test_a_text_that_is_cut_is_reported_once(caplog, folder):
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        model.encode(["river " * 16_000])
        assert not caplog.text
        model.encode(["river " * 20_000, "bridge"])
        model.encode(["river " * 20_000])
    finally:
        library.removeHandler(caplog.handler)
    assert caplog.text.count("at least one text reached 16384 tokens; what is longer was cut") == 1


def test_it_finds_documents_whoever_their_batch_mates_are(model):
    queries = model.encode_query(
        ["money for the bridge", "how to bake", "spectrum of a galaxy"], convert_to_tensor=True
    )
    together = model.encode_document(DOCUMENTS, batch_size=3, convert_to_tensor=True)
    alone = torch.stack([model.encode_document(text, convert_to_tensor=True) for text in DOCUMENTS])
    assert model.similarity(queries, together).argmax(1).tolist() == [0, 1, 2]
    assert (together - alone).abs().max() < 1e-6


def test_its_card_states_scores_licenses_and_limits(folder):
    card = (folder / "README.md").read_text()
    limit = {SMALL: "BM25 is better", MINI: "it is behind BM25"}[folder]
    for words in ("license: apache-2.0", "ndcg_at_10", "CC-BY-SA-4.0", "fine-tuned", limit):
        assert words in card


def test_cut_and_quantized_vectors_keep_their_cosines(model, folder):
    whole = model.encode_document(DOCUMENTS + ["a", "The committee approved the budget."])
    cut = normalized(whole[:, :768])
    assert np.abs(cut @ cut.T - whole @ whole.T).max() < 0.15
    ranges = np.array(json.loads((folder / "int8_ranges.json").read_text()))
    assert np.abs(whole).max() < ranges[1, 0]
    coarse = normalized(quantize_embeddings(whole, "int8", ranges=ranges).astype(np.float32))
    assert np.abs(coarse @ coarse.T - whole @ whole.T).max() < 0.01


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_vectors_of_a_model_in_16_bits_have_length_1(dtype, folder):
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", model_kwargs={"dtype": dtype})
    assert np.abs(np.linalg.norm(model.encode_document(DOCUMENTS), axis=1) - 1).max() < 1e-6


def normalized(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
