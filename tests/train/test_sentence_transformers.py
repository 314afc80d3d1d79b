"""The page on sentence-transformers does what it says: its code runs, its losses are ours, its folders reload."""

import re
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, CosineSimilarityLoss
from transformers import AutoModel, BertTokenizerFast

from m2bert.hub.folder import export_checkpoint, write_folder
from m2bert.train.losses import cosine_matrix, multiple_negatives_ranking_loss, orthogonal_projection_loss

ROOT = Path(__file__).parents[2]
PAGE, CARD = ROOT / "docs" / "sentence-transformers.md", ROOT / "hub" / "templates" / "model_card.md"
WORDS = ["who", "approved", "the", "budget", "where", "does", "river", "end", "minutes", "of", "a", "report", "about"]
TEXTS = ["who approved the budget", "a report about the river"]


@pytest.fixture
def folder(tiny_config, randomized, tmp_path):
    """An exported encoder with dropout, at the place that the page names."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)})
    config = tiny_config(pooling="weighted_mean", num_pooling_heads=2, hidden_dropout_prob=0.1)
    return write_folder(randomized(AutoModel.from_config(config)), tokenizer, tmp_path / "runs" / "opl-small")


@pytest.fixture
def model(folder):
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def hold_equal(model, theirs, ours):
    """Loss and every gradient; ours is a function, so that the graph is its own."""
    value, expected = theirs.item(), gradients(model, theirs)
    mine = ours()
    assert value == pytest.approx(mine.item(), rel=1e-5)
    found = gradients(model, mine)
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert largest > 1e-3
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-4 * largest, name


@pytest.mark.parametrize(("pooling", "heads"), [("weighted_mean", 2), ("mean", 1), ("cls_tanh", 1)])
def test_vectors_in_bfloat16_have_length_1_as_the_page_says(pooling, heads, folder, tiny_config, randomized, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(pooling=pooling, num_pooling_heads=heads)
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    path = write_folder(randomized(AutoModel.from_config(config)), tokenizer, tmp_path / pooling)
    options = {"trust_remote_code": True, "device": "cpu", "model_kwargs": {"dtype": torch.bfloat16}}
    vectors = SentenceTransformer(str(path), **options).encode(TEXTS, convert_to_tensor=True)
    error = (vectors.double().norm(dim=1) - 1).abs().max()
    assert error < (1e-6 if pooling == "weighted_mean" else 4e-3)
    vectors = torch.nn.functional.normalize(vectors.float())
    assert (vectors.double().norm(dim=1) - 1).abs().max() < 1e-6


def test_cosine_similarity_loss_is_orthogonal_projection(model):
    model.eval()
    queries, documents = TEXTS + TEXTS, TEXTS + TEXTS[::-1]
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0])
    theirs = CosineSimilarityLoss(model)([model.preprocess(queries), model.preprocess(documents)], labels)

    def ours():
        vectors = [model(model.preprocess(texts))["sentence_embedding"] for texts in (queries, documents)]
        diagonal = torch.eye(4, dtype=torch.bool)
        return orthogonal_projection_loss(cosine_matrix(*vectors), diagonal & (labels > 0.5)[:, None], diagonal)

    hold_equal(model, theirs, ours)


def test_cached_ranking_loss_replays_dropout(model):
    """With dropout, its gradients are those of one graph over vectors made under the same random states."""
    model.train()
    cached = CachedMultipleNegativesRankingLoss(model, scale=20.0, mini_batch_size=1)
    torch.manual_seed(3)
    theirs = cached([model.preprocess(TEXTS), model.preprocess(TEXTS[::-1])], None)

    def ours():
        torch.manual_seed(3)
        sides = [
            torch.cat([model(model.preprocess([text]))["sentence_embedding"] for text in texts])
            for texts in (TEXTS, TEXTS[::-1])
        ]
        cosine = cosine_matrix(*sides)
        return multiple_negatives_ranking_loss(cosine, torch.eye(2, dtype=torch.bool), torch.ones(2, 2).bool())

    assert theirs.item() != cached([model.preprocess(TEXTS), model.preprocess(TEXTS[::-1])], None).item()  # it drops
    hold_equal(model, theirs, ours)


@pytest.mark.slow
def test_the_page_runs_and_what_it_saves_reloads(folder, model, tmp_path, monkeypatch):
    before = model.encode(TEXTS)
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    for block in blocks[:2]:
        exec(compile(block, str(PAGE), "exec"), names)
    vectors = names["model"].encode(TEXTS)
    assert abs(vectors - before).max() > 1e-6
    groups = names["trainer"].optimizer.param_groups
    assert {group["initial_lr"] for group in groups} == {1e-6, 1e-4}
    filters = [name for name, _ in names["model"].named_parameters() if "filter." in name]
    assert sum(len(group["params"]) for group in groups if group["initial_lr"] == 1e-6) == len(filters) > 0
    again = SentenceTransformer("runs/mnrl-st", trust_remote_code=True, device="cpu")
    assert (again.encode(TEXTS) == vectors).all()
    assert "--model runs/mnrl-st --output runs/mnrl-st-export" in PAGE.read_text()
    exported = export_checkpoint("runs/mnrl-st", "runs/mnrl-st-export")
    assert (
        abs(SentenceTransformer(str(exported), trust_remote_code=True, device="cpu").encode(TEXTS) - vectors).max()
        < 1e-6
    )


def test_the_adapter_of_the_page_reaches_all_large_weights_and_is_saved(folder, model, tmp_path):
    peft = pytest.importorskip("peft")
    _, _, adapter = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    settings = (
        'r=8, lora_alpha=16, target_modules=["in_proj", "out_proj"], target_parameters=["up.weight", "down.weight"]'
    )
    assert settings in adapter
    assert settings in CARD.read_text()
    exec(compile(adapter, str(PAGE), "exec"), {"model": model})
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 1.0)
    for _ in range(2):  # in the first step one half of each adapter is zero, and so is the other's gradient
        optimizer.zero_grad()
        model(model.preprocess(TEXTS))["sentence_embedding"][:, :7].sum().backward()
        optimizer.step()
    learned = {name for name, each in model.named_parameters() if each.grad is not None and each.grad.any()}
    assert learned == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert all(any(part in name for name in learned) for part in ("in_proj", "out_proj", "up", "down"))
    vectors = model.encode(TEXTS)
    merged = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    assert abs(merged.encode(TEXTS) - vectors).max() > 1e-3
    model.save_pretrained(str(tmp_path / "adapter"))
    merged[0].auto_model = peft.PeftModel.from_pretrained(merged[0].auto_model, tmp_path / "adapter").merge_and_unload()
    assert abs(merged.encode(TEXTS) - vectors).max() < 1e-6
