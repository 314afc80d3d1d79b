import hashlib
import importlib
import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import sentence_transformers
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from m2bert.eval.encoders import sentence_transformer as sentence_encoder
from m2bert.eval.encoders.fingerprint import model_files
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder, token_batches

TEXTS = ["apple pear", "", "boat", "stone wall cloud rain " * 10, "river bridge horse"]


@pytest.fixture
def static_model(tmp_path):
    """Word vectors without a transformer: no special tokens, no longest input."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "apple": 1, "pear": 2, "boat": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)]).save(str(tmp_path / "static"))
    return tmp_path / "static"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_exact_float32_unit_vectors(tiny_model, dtype):
    encoder = SentenceTransformerEncoder(tiny_model)
    encoder.model.to(getattr(torch, dtype))
    vectors = encoder.encode(TEXTS, "document")
    assert (encoder.dtype, vectors.dtype, vectors.shape) == (dtype, np.float32, (5, encoder.dimensions))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


def test_vectors_of_another_width_or_none_are_refused(tiny_model):
    encoder = SentenceTransformerEncoder(tiny_model)
    encoder.dimensions = 15
    for given in ("vectors of 16 numbers", "no vectors"):
        with pytest.raises(ValueError, match=f"gives {given}, and its settings say 15; mend modules.json"):
            encoder.encode(TEXTS, "query")
        encoder.model._modules.pop("1", None)  # its pooling


def test_no_document_is_truncated_in_silence(tiny_model, caplog):
    encoder = SentenceTransformerEncoder(tiny_model)
    for _ in range(3):  # the first warning tells what happens to all that follow
        encoder.encode(TEXTS, "document")
    encoder.encode(TEXTS, "query")
    encoder.encode(TEXTS, "query", max_tokens=4)
    assert [record.getMessage().removeprefix(f"{tiny_model}: ") for record in caplog.records] == [
        "1 of 5 document texts cut to 12 tokens",
        "1 of 5 query texts cut to 12 tokens",
        "2 of 5 query texts cut to 4 tokens",
    ]
    assert encoder.count_tokens(TEXTS, "document").tolist() == [4, 2, 3, 42, 5]


@pytest.mark.parametrize("model", ["tiny_model", "static_model"])
def test_max_tokens_holds_for_one_call(model, request):
    encoder = SentenceTransformerEncoder(request.getfixturevalue(model))
    limit, texts = encoder.max_tokens, ["apple pear", "apple boat"]
    whole = encoder.encode(texts, "document")
    first, second = encoder.encode(texts, "document", max_tokens=3 if limit else 1)
    np.testing.assert_allclose(first, second, atol=1e-6)
    np.testing.assert_array_equal(encoder.encode(texts, "document"), whole)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3
    assert encoder.max_tokens == limit


@pytest.mark.parametrize("model", ["tiny_model", "static_model"])
def test_spans_are_the_characters_of_the_tokens(model, request):
    encoder = SentenceTransformerEncoder(request.getfixturevalue(model))
    texts = ["apple  pear", "", " boat"] + ["apple"] * 100
    spans = encoder.token_spans(texts)
    words = [[text[start:end] for start, end in rows] for text, rows in zip(texts, spans, strict=True)]
    assert words == [text.split() for text in texts]
    assert spans[1].shape == (0, 2)
    overhead = encoder.count_tokens([""], "document")[0]
    assert (encoder.count_tokens(texts, "document") - overhead).tolist() == [len(rows) for rows in spans]


@pytest.mark.parametrize(
    ("name", "revision", "trusted"),
    [
        (None, None, True),
        ("organization/model", None, False),
        (f"organization/model@{'0a' * 20}", "0a" * 20, True),
        ("organization/model@main", None, False),  # a branch can move
    ],
)
def test_code_may_come_with_a_folder_or_a_commit(tiny_model, monkeypatch, name, revision, trusted):
    asked = []
    original = sentence_transformers.SentenceTransformer

    def load(name, device, revision, trust_remote_code):
        asked.append((name, revision, trust_remote_code))
        if not trust_remote_code:
            raise ValueError("It contains custom code. Please pass `trust_remote_code=True`.")
        return original(str(tiny_model))

    monkeypatch.setattr(sentence_encoder, "hub_or_cache", lambda *_: nullcontext(""))
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", load)
    refused = pytest.raises(ValueError, match=f"'{name}' brings code of its own; .*{name}@COMMIT")
    with nullcontext() if trusted else refused:
        SentenceTransformerEncoder(name or tiny_model)
    repository = name.split("@")[0] if name and trusted else name
    assert asked == [(repository or str(tiny_model), revision, trusted)]


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """The model as sentence-transformers writes it, with every settings file."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    SentenceTransformerEncoder(tiny_model).model.save_pretrained(str(folder))
    return folder


TRANSFORMER = {"name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "NaN", "modules.json .*NaN"),
        ("modules.json", "[" * 100_000, "modules.json .*recursion"),
        ("modules.json", json.dumps([{"path": "", "type": TRANSFORMER["type"]}]), "modules.json: .*name"),
        ("modules.json", json.dumps([TRANSFORMER]), "no module that makes one vector"),
        ("modules.json", json.dumps([{**TRANSFORMER, "type": "no.such.Module"}]), "cannot be loaded .*No module named"),
        ("sentence_bert_config.json", '{"max_seq_length": {}}', "sentence_bert_config.json: max_seq_length"),
        ("config_sentence_transformers.json", '{"prompts": "x"}', "config_sentence_transformers.json: prompts"),
        ("1_Pooling/config.json", "null", "holds no JSON object"),
        ("1_Pooling/config.json", '{"word_embedding_dimension": [16]}', "config.json|cannot be loaded"),
        ("model.safetensors", "", "cannot be loaded .SafetensorError"),
    ],
)
def test_a_settings_file_of_another_form_is_named_with_the_cause(saved, tmp_path, file, content, message):
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        SentenceTransformerEncoder(folder)


def test_a_model_that_is_nowhere_is_named_with_the_remedy(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:hf_secret@127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="'org/name' is no folder .*does not answer .*go online") as caught:
        SentenceTransformerEncoder("org/name")
    assert "hf_secret" not in str(caught.value) + caplog.text
    assert not constants.HF_HUB_OFFLINE
    for name in ("modle", "no/such/folder", tmp_path):
        with pytest.raises(ValueError, match=f"^encoder '{name}' (is no folder|cannot be loaded)"):
            SentenceTransformerEncoder(name)


@pytest.mark.parametrize("seed", range(5))
def test_batches_hold_every_text_once_within_the_budget(seed):
    lengths = np.random.default_rng(seed).integers(1, 300, size=60)
    lengths[7] = 5_000
    batches = token_batches(lengths, 1_000)
    assert sorted(i for batch in batches for i in batch) == list(range(60))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= 1_000 for batch in batches)
    assert len(batches) <= 2 * lengths.clip(max=1_000).sum() / 1_000 + 1


def test_a_folder_with_other_tensors_than_its_model_reads_is_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    novelty = tensors["embeddings.LayerNorm.bias"].clone()
    cases = [
        ({k: v for k, v in tensors.items() if "1.output.dense.w" not in k}, "lacks .*layer.1.output.dense.weight"),
        (tensors | {"novelty": novelty}, "unexpectedly, .*novelty"),
        ({k: v for k, v in tensors.items() if "pooler" not in k}, None),  # sentence-transformers pools by itself
        (tensors | {"embeddings.position_ids": torch.arange(12)[None]}, None),  # as transformers 4 wrote it
    ]
    for changed, message in cases:
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message) if message else nullcontext():
            SentenceTransformerEncoder(folder)


def test_a_fingerprint_is_of_what_decides_vectors(tiny_model, tmp_path, monkeypatch):
    """Not of the folder, or of what was encoded; also of files that the model's code might import."""

    def changed(change):
        encoder = SentenceTransformerEncoder(tiny_model)
        change(encoder.model)
        return encoder.fingerprint

    def one_weight(model):
        model[0].model.encoder.layer[1].output.dense.weight.data[3, 5] += 1e-6

    def epsilon(model):
        model[0].model.config.layer_norm_eps = 1e-6

    def brought_code(factor):
        (tmp_path / "brought_layer.py").write_text("import torch\n\nclass Layer(torch.nn.Identity):\n    pass\n")
        (tmp_path / "helper.py").write_text(f"FACTOR = {factor}\n")  # which Layer might import
        monkeypatch.syspath_prepend(tmp_path)
        layer = importlib.import_module("brought_layer").Layer()
        return changed(lambda model: setattr(model[0].model.pooler, "activation", layer))

    changes = [
        lambda model: None,
        one_weight,
        epsilon,
        lambda model: model.tokenizer.add_tokens(["appl"]),
        lambda model: model.prompts.update(query="query: "),
        lambda model: model.bfloat16(),
        lambda model: setattr(model[1], "pooling_mode", "max"),
    ]
    digests = [*map(changed, changes), brought_code(1), brought_code(2)]
    assert len(set(digests)) == len(digests)
    used = SentenceTransformerEncoder(shutil.copytree(tiny_model, tmp_path / "copy"))
    used.model.max_seq_length = 7
    used.encode(TEXTS, "document", max_tokens=5)  # leaves its truncation in the tokenizer
    assert used.fingerprint == digests[0]


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "cls", "mean_tanh"])
@pytest.mark.parametrize("adapter", [False, True])
def test_an_m2bert_without_modules_is_refused_unless_its_vector_is_the_mean(
    tiny_model, tmp_path, monkeypatch, pooling, adapter
):
    """Sentence-transformers would take the mean for any pooling: other vectors than those of the model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    from m2bert import M2BertConfig, M2BertModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = M2BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, intermediate_size=8, num_blocks=1,
        max_position_embeddings=12, filter_order=4, pooling=pooling,
    )  # fmt: skip
    model, folder = M2BertModel(config), tmp_path / "plain"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if adapter:
        adapted = get_peft_model(M2BertModel.from_pretrained(folder), LoraConfig(target_modules=["out_proj"]))
        folder = tmp_path / "adapter"
        adapted.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if pooling == "mean":
        assert SentenceTransformerEncoder(folder).encode(TEXTS, "document").shape == (5, 8)
        return
    with pytest.raises(ValueError, match=f"has no modules.json, and its pooling is '{pooling}'; .*m2bert export"):
        SentenceTransformerEncoder(folder)
    name, commit, asked = "organization/model", "0a" * 20, []
    loaded = sentence_transformers.SentenceTransformer(str(folder), trust_remote_code=True)
    monkeypatch.setattr(sentence_encoder, "hub_or_cache", lambda *_: nullcontext(""))
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", lambda *_, **__: loaded)
    monkeypatch.setattr(
        sentence_transformers.util, "load_file_path", lambda *given, **more: asked.append((given, more))
    )
    with pytest.raises(ValueError, match="has no modules.json, .*m2bert export --model LOCAL_COPY"):
        SentenceTransformerEncoder(f"{name}@{commit}")
    assert [(given, more["revision"]) for given, more in asked] == [((name, "modules.json"), commit)]


def test_a_model_that_pads_to_its_maximum_fills_batches_by_it(tiny_model, tmp_path, monkeypatch):
    """Short texts are long then: as many as their own lengths allow would not fit into memory."""
    folder = tmp_path / "padded"
    SentenceTransformerEncoder(tiny_model).model.save_pretrained(str(folder))
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    settings["processing_kwargs"] = {"text": {"padding": "max_length"}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(sentence_encoder, "BATCH_TOKENS", 24)
    shapes = []
    for path in (tiny_model, folder):
        encoder = SentenceTransformerEncoder(path)
        batches = encoder._batches(["apple", "pear", "boat", "sail"], "document", encoder.max_tokens)
        shapes.append([tuple(features["input_ids"].shape) for _, features in batches])
    assert shapes == [[(4, 3)], [(2, 12), (2, 12)]]


def other_tokenizer(encoder):
    """A byte-level tokenizer with the special tokens of RoBERTa, which cuts and pads on the left."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *sorted(alphabet)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    sides = {"padding_side": "left", "truncation_side": "left", "model_max_length": 12}
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"}
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}
    encoder.model[0].model.resize_token_embeddings(len(vocabulary))
    encoder.model[0].processor = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **sides, **names, **inputs)


def query_prompt(encoder):
    encoder.model.prompts["query"] = "horse saddle "
    assert encoder.count_tokens(["boat"], "query").tolist() == [5]


def default_prompt(encoder):
    encoder.model.prompts["other"] = "horse "
    encoder.model.default_prompt_name = "other"
    del encoder.model.prompts["document"], encoder.model.prompts["query"]


@pytest.mark.parametrize("change", [None, other_tokenizer, query_prompt, default_prompt])
def test_the_model_reads_what_its_own_preprocessing_would_give_it(tiny_model, change):
    encoder = SentenceTransformerEncoder(tiny_model)
    if change:
        change(encoder)
    assert encoder._reads_ids
    model = encoder.model
    for task, own in (("query", model.encode_query), ("document", model.encode_document)):
        texts = encoder.tokenize(TEXTS, task)
        for limit in (12, 5):
            model.max_seq_length = limit
            expected = model.preprocess(TEXTS, prompt=encoder._prompt(task), task=task)
            features = encoder._features(texts, task, limit)
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                assert (name in features) == (name in expected)
                assert name not in expected or features[name].tolist() == expected[name].tolist()
        model.max_seq_length = 12
        np.testing.assert_allclose(encoder.encode(texts, task), own(TEXTS, normalize_embeddings=True), atol=1e-6)


def test_long_texts_have_the_tokens_that_the_model_gives_them(tiny_model, monkeypatch):
    encoder, texts = SentenceTransformerEncoder(tiny_model), [" ".join(TEXTS * 3), "boat\t\tsail\n"]
    expected = [encoder.model.tokenizer(text)["input_ids"][1:-1] for text in texts]
    spans = encoder.token_spans(texts)
    monkeypatch.setattr(sentence_encoder, "LONG_CHARS", 5)
    assert [text.encoding.ids.tolist() for text in encoder.tokenize(texts, "document")] == expected
    assert [rows.tolist() for rows in encoder.token_spans(texts)] == [rows.tolist() for rows in spans]
    assert encoder.count_tokens(texts, "document").tolist() == [len(ids) + 2 for ids in expected]


def test_a_model_with_preprocessing_of_its_own_keeps_it(tiny_model):
    encoder = SentenceTransformerEncoder(tiny_model)
    encoder.model[0].document_length = 5
    assert not encoder._reads_ids
    rows = encoder.encode(TEXTS, "document")
    np.testing.assert_allclose(rows, encoder.model.encode_document(TEXTS, normalize_embeddings=True), atol=1e-6)
    np.testing.assert_allclose(rows[3], encoder.encode(["stone wall cloud"], "document")[0], atol=1e-6)


def test_a_tokenizer_that_is_not_fast_can_truncate(tiny_model, monkeypatch):
    encoder = SentenceTransformerEncoder(tiny_model)
    rows = encoder.encode(TEXTS, "document", max_tokens=5)
    monkeypatch.setitem(encoder.__dict__, "_backend", None)
    np.testing.assert_allclose(encoder.encode(TEXTS, "document", max_tokens=5), rows, atol=1e-6)
    assert encoder.count_tokens(TEXTS, "document").tolist() == [4, 2, 3, 42, 5]
    assert encoder.max_tokens == encoder.model.max_seq_length == 12
    with pytest.raises(ValueError, match="tokenizer of encoder '.*tiny' does not tell where"):
        encoder.token_spans(["apple"])


def test_weights_settings_and_tokenizer_count_and_nothing_else(tmp_path):
    counting = ["model.safetensors", "config.json", "vocab.txt", "1_Dense/model.safetensors", "2_Normalize/config.json"]
    for name in (*counting, "README.md", "training.json", "conversion.json", "code.py", "runs/other.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert model_files(tmp_path) == {name: hashlib.sha256(name.encode()).hexdigest() for name in counting}
    assert model_files("org/name") is model_files(tmp_path / "missing") is None
