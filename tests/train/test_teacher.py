"""Teacher vectors, kept on disk, and the map to their width."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModel

from m2bert.eval.encoders import sentence_transformer as sentence_encoder
from m2bert.eval.tasks.schema import load_task
from m2bert.train.losses import make_objective
from m2bert.train.teacher import MappedEncoder, teacher_vectors


@pytest.fixture
def encoded(monkeypatch):
    """Stand in for a sentence-transformers model: a text's vector is its first two characters' codes. Return the names
    of the teachers that encoded."""
    names = []

    def encode(texts, task):
        sign = 1 if task == "query" else -1
        return np.array([[ord(text[0]), sign * ord(text[1])] for text in texts], dtype=np.float32)

    def load(name):
        names.append(name)
        return SimpleNamespace(encode=encode)

    monkeypatch.setattr(sentence_encoder, "SentenceTransformerEncoder", load)
    return names


def test_vectors_are_computed_once_per_teacher_and_text(toy_corpus, tmp_path, encoded, caplog):
    tasks = [load_task(toy_corpus, "toy", split) for split in ("train", "validation")]
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "model.safetensors").write_bytes(b"one")

    def vectors(tasks, name=str(teacher)):
        return teacher_vectors(Accelerator(cpu=True), name, tasks, str(tmp_path / "cache"))

    queries, documents = vectors(tasks)
    texts = [text for task in tasks for text in task.queries.values()]
    assert queries.tolist() == [[ord(text[0]), ord(text[1])] for text in texts]
    assert documents.shape == (26, 2)
    assert (documents[:, 1] < 0).all()
    again = vectors(tasks)
    assert len(encoded) == 1
    assert torch.equal(again[0], queries)
    assert torch.equal(again[1], documents)
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert torch.equal(vectors(tasks)[1], documents)
    assert f"{file} is missing or damaged" in caplog.text
    (teacher / "model.safetensors").write_bytes(b"two")
    vectors(tasks)
    vectors(tasks[:1])
    vectors(tasks, "org/model")
    assert encoded == [str(teacher)] * 4 + ["org/model"]
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_an_unknown_teacher_is_named(toy_corpus, tmp_path):
    task = load_task(toy_corpus, "toy", "train")
    with pytest.raises(ValueError, match="'./nowhere/at/all' cannot be loaded"):
        teacher_vectors(Accelerator(cpu=True), "./nowhere/at/all", [task], str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_each_text_is_compared_with_its_own_teacher_vector():
    targets = torch.randn(9, 4), torch.randn(7, 4)
    batch = {"query_ids": torch.tensor([8, 0, 8]), "document_ids": torch.tensor([3, 6])}
    objective = make_objective(SimpleNamespace(name="prototype"), targets)
    queries, documents = 2 * targets[0][[8, 0, 8]], -targets[1][[3, 6]]
    assert objective(batch, queries, -documents).item() == pytest.approx(0, abs=1e-6)
    assert objective(batch, queries, documents).item() == pytest.approx(2, abs=1e-6)


def test_vectors_are_mapped_in_training_alone(tiny_config):
    encoder = AutoModel.from_config(tiny_config())
    model, ids = MappedEncoder(encoder, 32, 5), torch.tensor([[7, 8, 9]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = encoder(**inputs).pooler_output
    assert torch.allclose(model.train()(**inputs).pooler_output, expected @ model.map.weight.T, atol=1e-6)
    assert torch.equal(model.eval()(**inputs).pooler_output, expected)
