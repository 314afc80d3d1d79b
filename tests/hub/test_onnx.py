"""Models as ONNX: onnxruntime gives torch's outputs at every length, whatever the padding; or nothing is written."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import modeling_m2bert.configuration_m2bert
from m2bert.hub import cli
from m2bert.hub.folder import export_checkpoint, write_folder
from modeling_m2bert import (
    M2BertForMaskedLM,
    M2BertForMultipleChoice,
    M2BertForQuestionAnswering,
    M2BertForSequenceClassification,
    M2BertForTokenClassification,
    M2BertModel,
)

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "models" / "m2bert-small"
FULL = {"pooling": "weighted_mean", "num_pooling_heads": 3, "pooling_saturation": 2, "contextual_pooling": True}
JOINT = FULL | {"lexical_heads": 2, "lexical_size": 8, "lexical_saturation": 1.5, "pooling_rotation": True}


def write_onnx(model, folder):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs m2bert[onnx]")
    from m2bert.hub.onnx import write_onnx

    write_onnx(model, folder)


def session_of(folder):
    import onnxruntime

    return onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])


def run(session, ids, mask):
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    return dict(zip(names, map(torch.from_numpy, found), strict=True))


def run_torch(model, ids, mask):
    with torch.no_grad():
        outputs = model(ids, mask)
    if not isinstance(model, M2BertModel):
        return dict(outputs)
    vectors = torch.nn.functional.normalize(outputs.pooler_output)
    return {"last_hidden_state": outputs.last_hidden_state, "sentence_embedding": vectors}


def assert_same(model, session, batch, length, limit=1e-5):
    """Compare rows of full, half and (from the third) one token less than full length."""
    ids = torch.randint(5, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))
    real = torch.tensor([length, (length + 1) // 2, max(1, length - 1)])[:batch, None]
    mask = (torch.arange(length) < real).long()
    if isinstance(model, M2BertForMultipleChoice):
        ids, mask = ids[None], mask[None]  # the choices of one question
    expected, found = run_torch(model, ids, mask), run(session, ids, mask)
    assert list(expected) == list(found)
    for name, value in expected.items():
        assert (value - found[name]).abs().max() < limit * value.abs().max().clamp(min=1), (name, length)


@pytest.mark.parametrize("fields", [FULL, JOINT])
def test_every_length_and_padding_gives_the_vectors_of_torch(tmp_path, tiny_config, randomized, fields):
    model = randomized(M2BertModel(tiny_config(num_hidden_layers=1, **fields))).to(torch.bfloat16)
    write_onnx(model, tmp_path)
    session, model = session_of(tmp_path), model.float()
    for length in range(1, 49):
        assert_same(model, session, 1 + length % 3, length)
    ids, mask = torch.randint(5, 120, (1, 11)), torch.ones(1, 11, dtype=torch.long)
    alone = run(session, ids, mask)["sentence_embedding"]
    mates = torch.randint(5, 120, (2, 37))
    mates[0, :11], masks = ids, torch.ones(2, 37, dtype=torch.long)
    masks[0, 11:] = 0
    padded = run(session, mates, masks)
    assert (padded["sentence_embedding"][:1] - alone).abs().max() < 1e-6
    assert not padded["last_hidden_state"][0, 11:].any()
    assert_integers_fit(tmp_path)


def assert_integers_fit(folder):
    """OpenVINO computes integers in 32 bits, without a word."""
    import onnx

    tensors = map(onnx.numpy_helper.to_array, onnx.load(folder / "onnx" / "model.onnx").graph.initializer)
    assert all(np.abs(tensor).max(initial=0) < 2**31 for tensor in tensors if tensor.dtype == np.int64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "changes"),
    [
        (M2BertModel, {"pooling": "weighted_mean", "position_embeddings": False}),
        (M2BertModel, {"pooling": "cls_tanh", "residual_long_conv": False, "num_blocks": 1}),
        (M2BertModel, {"pooling": "mean_tanh", "mixer_layer_norm": True, "filter_embedding_size": 3}),
        (M2BertModel, {"pooling": "cls", "padding": "visible"}),
        (M2BertModel, {"num_hidden_layers": 0}),
        (M2BertForMaskedLM, {}),
        (M2BertForSequenceClassification, {"num_labels": 3, "pooling": "cls"}),
        (M2BertForTokenClassification, {"num_labels": 3}),
        (M2BertForQuestionAnswering, {}),
        (M2BertForMultipleChoice, {"pooling": "weighted_mean"}),
    ],
)
def test_every_kind_of_model_gives_the_outputs_of_torch(tmp_path, tiny_config, randomized, cls, changes):
    model = randomized(cls(tiny_config(**changes)))
    write_onnx(model, tmp_path)
    session = session_of(tmp_path)
    for batch, length in ((1, 1), (2, 2), (3, 3), (3, 17), (2, 33), (1, 48)):
        assert_same(model, session, batch, length)


@pytest.mark.slow
def test_openvino_counts_words_in_each_text_of_a_batch_alone(tmp_path, tiny_config, randomized):
    openvino = pytest.importorskip("openvino", reason="not in the dev extra")
    model = randomized(M2BertModel(tiny_config(num_hidden_layers=0, **FULL)))
    write_onnx(model, tmp_path)
    session = openvino.Core().compile_model(
        tmp_path / "onnx" / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    ids = torch.randint(5, 15, (4, 24))
    inputs = {"input_ids": ids.numpy(), "attention_mask": np.ones((4, 24), np.int64)}
    found = torch.from_numpy(session(inputs)["sentence_embedding"])
    assert (found - run_torch(model, ids, torch.ones_like(ids))["sentence_embedding"]).abs().max() < 1e-5


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folder, model and session of the shipped model."""
    folder = tmp_path_factory.mktemp("small")
    model = AutoModel.from_pretrained(SMALL, trust_remote_code=True).eval()
    write_onnx(M2BertModel.from_pretrained(SMALL), folder)
    return model, session_of(folder)


# At lengths such as 6000 and 12288, whose transforms would not be powers of two, onnxruntime's own DFT loses digits.
@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 17, 128, 513, 2048, 6000, 6144, 8192, 12288, 16383, 16384])
def test_long_texts_give_the_vectors_of_torch(small, length):
    model, session = small
    assert_same(model, session, 3 if length <= 2048 else 2, length, limit=5e-6)


@pytest.mark.slow
def test_a_longer_text_than_the_model_reads_is_an_error(small):
    ids = torch.ones(1, 16385, dtype=torch.long)
    with pytest.raises(Exception, match="indices element out of data bounds|out of bounds"):
        run(small[1], ids, ids)


def test_a_file_whose_outputs_differ_is_not_kept(tmp_path, tiny_config, monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs m2bert[onnx]")
    onnx = pytest.importorskip("m2bert.hub.onnx", reason="needs m2bert[onnx]")
    M2BertModel(tiny_config(num_hidden_layers=1)).save_pretrained(tmp_path / "checkpoint")
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="for 1 tokens onnxruntime's last_hidden_state differs from torch's by"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "out", onnx=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_missing_packages_are_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name.startswith("onnx") else name)
    with pytest.raises(ValueError, match=r"onnx, onnxscript, onnxruntime; pip install 'm2bert\[onnx\]'"):
        cli.export(SMALL, tmp_path / "out", onnx=True)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def exported(tmp_path, tiny_config, randomized, tokenizer, monkeypatch):
    """A folder whose ONNX model has its weights in a second file, as it has if they take more than 2 GB."""
    onnx = pytest.importorskip("m2bert.hub.onnx", reason="needs m2bert[onnx]")
    model = randomized(M2BertModel(tiny_config(num_hidden_layers=1)))
    write_folder(model, tokenizer, tmp_path / "checkpoint")
    monkeypatch.setattr(onnx, "MOST_BYTES", 0)
    return export_checkpoint(tmp_path / "checkpoint", tmp_path / "out", onnx=True)


def test_the_card_shows_how_to_run_it(exported, capfd):
    blocks = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), flags=re.DOTALL)
    (example,) = (block for block in blocks if "onnxruntime" in block)
    found = {"path": str(exported)}
    exec(example.replace("a long report ...", "a report about the budget"), found)  # noqa: S102  (the card's own code)
    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    batch = tokenizer(["a report about the budget"], return_tensors="pt")
    expected = run_torch(M2BertModel.from_pretrained(exported).eval(), batch.input_ids, batch.attention_mask)
    assert np.abs(found["embedding"] - expected["sentence_embedding"].numpy()).max() < 1e-6
    assert sorted(path.name for path in (exported / "onnx").iterdir()) == ["model.onnx", "model.onnx_data"]
    assert str(ROOT).encode() not in (exported / "onnx" / "model.onnx").read_bytes()
    export_checkpoint(exported.parent / "checkpoint", exported, overwrite=True)  # an ONNX model is no foreign file
    assert not (exported / "onnx").exists()


def test_settings_are_readable_where_transformers_has_another_base_class(monkeypatch):
    """transformers 4 has no PreTrainedConfig. optimum needs the settings there, and no other code of a folder."""

    class PretrainedConfig:
        def __init__(self, **settings):
            self.__dict__.update(settings)

        register_for_auto_class = classmethod(lambda cls, name: None)

    older = types.ModuleType("transformers")
    older.PretrainedConfig = PretrainedConfig
    monkeypatch.setitem(sys.modules, "transformers", older)
    found = {"__name__": "older"}
    exec(Path(modeling_m2bert.configuration_m2bert.__file__).read_text(), found)  # noqa: S102  (the model's own code)
    config = found["M2BertConfig"](**json.loads((SMALL / "config.json").read_text()) | {"model_type": "m2bert"})
    assert (config.projection_dim, config.type_vocab_size) == (3072, 2)


@pytest.mark.slow
def test_transformers_js_gives_the_vectors_of_torch(small, tmp_path):
    """Run the script of docs/onnx.md. M2BERT_NODE names a folder in which npm installed what that page says."""
    node, packages = shutil.which("node"), os.environ.get("M2BERT_NODE")
    if not (node and packages):
        pytest.skip("needs node, and M2BERT_NODE: a folder where npm installed @huggingface/transformers")
    (script,) = re.findall(r"```javascript\n(.*?)```", (ROOT / "docs" / "onnx.md").read_text(), flags=re.DOTALL)
    export_checkpoint(SMALL, tmp_path / "exports" / "m2bert-small", onnx=True)
    (tmp_path / "node_modules").symlink_to(Path(packages, "node_modules").resolve())
    (tmp_path / "run.mjs").write_text(script + "\nconsole.log(JSON.stringify(sentence_embedding.tolist()));\n")
    done = subprocess.run([node, "run.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    texts = json.loads(re.search(r"const texts = (\[.*?\]);", script)[1])
    batch = AutoTokenizer.from_pretrained(SMALL, trust_remote_code=True)(texts, padding=True, return_tensors="pt")
    expected = run_torch(small[0], batch.input_ids, batch.attention_mask)["sentence_embedding"]
    assert (torch.tensor(json.loads(done.stdout.splitlines()[-1])) - expected).abs().max() < 1e-6
