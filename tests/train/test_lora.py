"""LoRA: only adapters learn, what was saved loads with peft and nothing else, and merging changes no vector."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from m2bert.hub.checkpoint import load_checkpoint, load_strictly
from m2bert.hub.folder import export_checkpoint, write_folder
from m2bert.train.lora import add_lora, write_adapter

peft = pytest.importorskip("peft")

IDS = torch.arange(1, 41).view(2, 20)
LOAD_ELSEWHERE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModel

base, adapter, output = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModel.from_pretrained(base, trust_remote_code=True), adapter).eval()
assert "modeling_m2bert" not in sys.modules and "m2bert" not in sys.modules
with torch.no_grad():
    torch.save(model(torch.arange(1, 41).view(2, 20)).pooler_output, output)
"""


@pytest.fixture
def base(tiny_config, randomized, tokenizer, tmp_path):
    """An exported encoder."""
    model = randomized(AutoModel.from_config(tiny_config(pooling="mean_tanh")))
    return write_folder(model, tokenizer, tmp_path / "base")


def load(base):
    return load_strictly(AutoModel, base, may_miss=("pooler.",))


def adapt(base):
    """A loaded base with adapters."""
    model, new = load(base)
    return add_lora(model, 4, 8, new)


def vectors(model):
    model.eval()
    with torch.no_grad():
        return model(IDS).pooler_output


def train(model, steps=3):
    """A few large steps of SGD on what may be trained."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(IDS).pooler_output[:, :5].sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # or weights explode, and rounding with them
        optimizer.step()
    return model


def test_only_adapters_learn_and_all_of_them_do(base):
    model, new = load(base)
    before = vectors(model)
    adapted = add_lora(model, 4, 8, new)
    assert torch.equal(vectors(adapted), before)
    state = {name: parameter.clone() for name, parameter in adapted.named_parameters()}
    train(adapted)
    changed = {name for name, parameter in adapted.named_parameters() if not torch.equal(parameter, state[name])}
    assert changed == {name for name in state if "lora_" in name}
    for layer in (0, 1):
        for place in ("mixer.in_proj", "mixer.out_proj", "mlp.up", "mlp.down"):
            assert f"base_model.model.layers.{layer}.{place}.lora_B.default.weight" in changed
    assert len(changed) == 2 * 4 * 2
    assert (vectors(adapted) - before).abs().max() > 1e-2


def test_saved_and_merged_adapters_give_the_same_vectors(base, tokenizer, tmp_path):
    adapted = train(adapt(base))
    expected = vectors(adapted)
    adapter = write_adapter(adapted, tokenizer, tmp_path / "adapter", extra_files={"training.json": "{}"})
    names = {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json", "training.json"}
    assert names <= {path.name for path in adapter.iterdir()}
    assert "config.json" not in {path.name for path in adapter.iterdir()}
    card = (adapter / "README.md").read_text()
    assert "base_model" not in card.split("---")[1]  # the Hub takes no local path there
    assert "Before pushing this folder, push the base" in card
    assert (adapter / "adapter_model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size / 2

    merged = export_checkpoint(adapter, tmp_path / "merged")
    assert (vectors(AutoModel.from_pretrained(merged)) - expected).abs().max() <= 1e-6
    assert load_file(merged / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
    assert (merged / "training.json").read_text() == "{}\n"
    assert AutoTokenizer.from_pretrained(merged).get_vocab() == tokenizer.get_vocab()


@pytest.mark.slow
def test_peft_and_transformers_alone_load_an_adapter(base, tokenizer, tmp_path):
    adapted = train(adapt(base))
    expected = vectors(adapted)
    adapter = write_adapter(adapted, tokenizer, tmp_path / "adapter")
    arguments = [str(base), str(adapter), str(tmp_path / "vectors.pt")]
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (torch.load(tmp_path / "vectors.pt") - expected).abs().max() <= 1e-6


def test_a_new_pooler_is_trained_whole_and_saved(tiny_config, randomized, tokenizer, tmp_path):
    """On top of a masked-LM checkpoint, which has none."""
    config = tiny_config(pooling="weighted_mean", num_pooling_heads=2)
    base = write_folder(randomized(AutoModelForMaskedLM.from_config(config)), tokenizer, tmp_path / "mlm")
    model, new = load(base)
    assert new == {"pooler.token_log_weights.weight"}
    start = model.pooler.token_log_weights.weight.detach().clone()
    adapted = train(add_lora(model, 2, 2, new))
    expected = vectors(adapted)
    adapter = write_adapter(adapted, tokenizer, tmp_path / "adapter")
    merged = load_checkpoint(adapter)
    assert type(merged).__name__ == "M2BertModel"
    assert (vectors(merged) - expected).abs().max() <= 1e-6
    assert not torch.equal(merged.pooler.token_log_weights.weight, start)


def test_what_an_adapter_cannot_carry_is_refused(base):
    changed, new = load_strictly(AutoModel, base, padding="visible", hidden_dropout_prob=0.2)
    with pytest.raises(ValueError, match=r"padding='visible' \(base: 'masked'\)"):
        add_lora(changed, 4, 8, new)
    dropping, new = load_strictly(AutoModel, base, hidden_dropout_prob=0.2)
    add_lora(dropping, 4, 8, new)  # dropout is no part of the function that is kept


def test_damaged_or_homeless_adapters_are_refused(base, tokenizer, tmp_path, monkeypatch):
    adapter = write_adapter(adapt(base), tokenizer, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.layers.1.mlp.up.lora_B.weight"
    save_file({key: value for key, value in weights.items() if key != name}, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"missing or unexpected: {name}"):
        export_checkpoint(adapter, tmp_path / "out")
    save_file(weights, adapter / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)
    moved = settings | {"base_model_name_or_path": str(tmp_path / "moved")}
    (adapter / "adapter_config.json").write_text(json.dumps(moved))
    with pytest.raises(ValueError, match="moved, which its adapter_config.json names"):
        export_checkpoint(adapter, tmp_path / "out")
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="cannot be merged .*peft"):
        export_checkpoint(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
