"""Export of checkpoints: nothing lost, nothing unaccounted for, whoever saved them."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from m2bert.hub.checkpoint import AUTO_CLASSES
from m2bert.hub.folder import export_checkpoint, write_folder
from m2bert.hub.sentence_files import SentenceSettings
from modeling_m2bert import M2BertModel

TEXTS = ["the budget of the committee", "a report", "", "minutes of a meeting about a budget"]


@pytest.mark.parametrize("cls", AUTO_CLASSES)
def test_export_of_a_checkpoint_changes_no_tensor(tmp_path, tiny_config, randomized, tokenizer, cls):
    config = tiny_config(num_labels=3, id2label={0: "O", 1: "B-SUM", 2: "I-SUM"})
    model = randomized(AUTO_CLASSES[cls].from_config(config)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("checkpoint", "out"))
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name])
    loaded = AUTO_CLASSES[cls].from_pretrained(tmp_path / "out")
    assert type(loaded).__name__ == cls
    assert loaded.config.id2label == config.id2label


def test_checkpoints_with_other_tensors_are_refused_by_name(tmp_path, tiny_config):
    model = M2BertModel(tiny_config())
    model.save_pretrained(tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint" / "model.safetensors"
    tensors = load_file(weights)
    for change, message in [
        (lambda t: t.pop("layers.0.norm.weight"), "missing: layers.0.norm.weight"),
        (lambda t: t.update({"layers.9.novelty": torch.zeros(1)}), "unexpected: layers.9.novelty"),
        (lambda t: t.update({"layers.0.norm.weight": torch.zeros(3)}), "of another shape: layers.0.norm.weight"),
    ]:
        changed = dict(tensors)
        change(changed)
        save_file(changed, weights, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            export_checkpoint(tmp_path / "checkpoint", tmp_path / "out")
    with pytest.raises(ValueError, match="config.json cannot be read"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dense_layer_trained_by_sentence_transformers_comes_back(tmp_path, tiny_config, randomized, tokenizer):
    """Train the Dense, save with sentence-transformers, export again: all three agree."""
    model = randomized(M2BertModel(tiny_config(pooling="mean_tanh")))
    settings = SentenceSettings(prompts={"query": "budget ", "document": ""}, max_tokens=20)
    first = write_folder(model, tokenizer, tmp_path / "first", settings=settings)
    trained = SentenceTransformer(str(first), trust_remote_code=True, device="cpu")
    with torch.no_grad():
        trained[2].linear.weight.mul_(-0.5)
    expected = trained.encode(TEXTS, convert_to_tensor=True)
    trained.save_pretrained(str(tmp_path / "trained"))
    second = export_checkpoint(tmp_path / "trained", tmp_path / "second")
    again = SentenceTransformer(str(second), trust_remote_code=True, device="cpu")
    assert (again.encode(TEXTS, convert_to_tensor=True) - expected).abs().max() < 1e-6
    assert again.prompts == {"query": "budget ", "document": ""}
    assert again.max_seq_length == trained.max_seq_length == 20
    with torch.no_grad():
        pooled = (
            M2BertModel.from_pretrained(second)
            .eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
            .pooler_output
        )
    assert (torch.nn.functional.normalize(pooled, dim=1) - expected).abs().max() < 1e-6


def test_token_weights_trained_by_sentence_transformers_are_the_models_own(
    tmp_path, tiny_config, randomized, tokenizer
):
    model = randomized(M2BertModel(tiny_config(pooling="weighted_mean", num_pooling_heads=2)))
    first = write_folder(model, tokenizer, tmp_path / "first")
    trained = SentenceTransformer(str(first), trust_remote_code=True, device="cpu")
    optimizer = torch.optim.SGD(trained.parameters(), 1.0)
    features = {key: value for key, value in tokenizer(TEXTS, padding=True, return_tensors="pt").items()}
    trained(features)["sentence_embedding"][:, :7].sum().backward()
    optimizer.step()
    expected = trained.encode(TEXTS, convert_to_tensor=True)
    trained.save_pretrained(str(tmp_path / "trained"))
    second = export_checkpoint(tmp_path / "trained", tmp_path / "second")
    again = SentenceTransformer(str(second), trust_remote_code=True, device="cpu")
    assert (again.encode(TEXTS, convert_to_tensor=True) - expected).abs().max() < 1e-6
    weights = M2BertModel.from_pretrained(second).pooler.token_log_weights.weight
    assert not torch.equal(weights, model.pooler.token_log_weights.weight)


def test_modules_that_an_export_would_drop_are_refused(tmp_path, tiny_config, tokenizer):
    write_folder(M2BertModel(tiny_config()), tokenizer, tmp_path / "first")
    path = tmp_path / "first" / "1_Pooling" / "config.json"
    content = path.read_text()
    path.write_text(content.replace('"pooling_mode_cls_token": false', '"pooling_mode_cls_token": true'))
    with pytest.raises(ValueError, match="Pooling by cls.mean"):
        export_checkpoint(tmp_path / "first", tmp_path / "out")
    path.write_text(content)
    modules = SentenceTransformer(str(tmp_path / "first"), trust_remote_code=True, device="cpu")
    from sentence_transformers.models import Dense

    longer = SentenceTransformer(modules=[modules[0], modules[1], Dense(32, 16)], device="cpu")
    bare = SentenceTransformer(modules=[modules[0], modules[1]], device="cpu")  # is not given a normalization
    for model, last in ((longer, r"Pooling by mean, Dense \(.*\)"), (bare, "Pooling by mean")):
        model.save_pretrained(str(tmp_path / "second"))
        with pytest.raises(ValueError, match=f"Transformer, {last}, but .*exported as Transformer, .* mean, Normalize"):
            export_checkpoint(tmp_path / "second", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_record_of_training_comes_along_and_the_source_is_safe(tmp_path, tiny_config, tokenizer):
    inner = write_folder(
        M2BertModel(tiny_config()), tokenizer, tmp_path / "runs" / "inner", extra_files={"training.json": "{}"}
    )
    assert (export_checkpoint(inner, tmp_path / "out") / "training.json").read_text() == "{}\n"
    (tmp_path / "runs" / "config.json").write_text("{}")
    (tmp_path / "out" / "about.yaml").write_text("license: mit")
    for output, about in (
        (tmp_path / "runs", None),
        (inner, None),
        (tmp_path / "out", tmp_path / "out" / "about.yaml"),
    ):
        with pytest.raises(ValueError, match="from which it is made|of no model folder"):
            export_checkpoint(inner, output, overwrite=True, about=about)
    assert (inner / "model.safetensors").is_file()
    assert about.is_file()


def test_a_model_that_sees_its_padding_is_padded_alike_everywhere(tmp_path, tiny_config, randomized, tokenizer):
    """Otherwise its vectors would depend on the longest text of a batch."""
    model = randomized(M2BertModel(tiny_config(padding="visible", pooling="cls_tanh")))
    folder = write_folder(model, tokenizer, tmp_path / "out")
    loaded = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    together = loaded.encode(TEXTS, batch_size=4)
    alone = loaded.encode(TEXTS, batch_size=1)
    assert abs(together - alone).max() < 1e-5
    batch = tokenizer(TEXTS, padding="max_length", max_length=48, return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(**batch).pooler_output).numpy()
    assert abs(together - expected).max() < 1e-5
    loaded.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert abs(again.encode(TEXTS, batch_size=1) - expected).max() < 1e-5
