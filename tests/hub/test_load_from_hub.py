"""From a folder over a push to a stranger's process: the Auto classes and sentence-transformers load what was sent.

The stranger cannot import this package, has an empty cache, and talks to a Hub on 127.0.0.1 with the real client.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_hub import READ_TOKEN, FakeHub

from m2bert.hub import clean_load
from m2bert.hub.folder import write_folder
from m2bert.hub.push import carry_out, plan_push
from modeling_m2bert import M2BertModel

TEXTS = ["the budget of the committee", "a report", "", "minutes of a meeting about a budget report"]
LOAD = f"""
import json, sys
sys.path.insert(0, {str(Path(clean_load.__file__).parent)!r})
from clean_load import Blocker
sys.path[0] = ""
sys.meta_path.insert(0, Blocker())
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

repo, revision, expected, texts = sys.argv[1], sys.argv[2], torch.load(sys.argv[3]), json.loads(sys.argv[4])
pinned = {{"revision": revision, "trust_remote_code": True}}
tokenizer = AutoTokenizer.from_pretrained(repo, **pinned)
model = AutoModel.from_pretrained(repo, **pinned).eval()
if len(sys.argv) > 5:
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, sys.argv[5], revision=sys.argv[6]).eval()
else:
    assert revision in type(model).__module__, type(model).__module__
    vectors = SentenceTransformer(repo, **pinned).encode(texts, convert_to_tensor=True)
    assert (vectors - torch.nn.functional.normalize(expected, dim=1)).abs().max() < 1e-6
with torch.no_grad():
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(model(**batch).pooler_output, expected)
"""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        yield hub


def stranger(hub, home, code, *arguments, token=None):
    """A process of somebody without this package; `home` is its cache."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = hub.environment(home, token)
    return subprocess.run(command, capture_output=True, text=True, cwd=home.parent, env=environment)


def pooled(model, tokenizer):
    with torch.no_grad():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output


def push(folder, repo_id, **options):
    return carry_out(plan_push(folder, repo_id, **options)).oid


@pytest.mark.slow
def test_a_stranger_with_a_token_loads_the_pinned_commit_of_a_private_model(
    hub, tmp_path, tiny_config, randomised, tokenizer
):
    """The vectors are the same, also after the branch moved on. Without a token the model does not exist."""
    model = randomised(M2BertModel(tiny_config(pooling="weighted_mean", num_pooling_heads=2)))
    torch.save(pooled(model, tokenizer), tmp_path / "expected.pt")
    sha = push(write_folder(model, tokenizer, tmp_path / "model"), "org/m2bert", private=True)
    other = write_folder(M2BertModel(tiny_config()), tokenizer, tmp_path / "other")
    assert push(other, "org/m2bert") != sha
    arguments = ["org/m2bert", sha, tmp_path / "expected.pt", json.dumps(TEXTS)]
    result = stranger(hub, tmp_path / "stranger", LOAD, *arguments)
    assert result.returncode == 1
    assert "org/m2bert is not a local folder and is not a valid model identifier" in result.stderr
    result = stranger(hub, tmp_path / "friend", LOAD, *arguments, token=READ_TOKEN)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_a_stranger_puts_an_adapter_on_its_base(hub, tmp_path, tiny_config, randomised, tokenizer):
    peft = pytest.importorskip("peft")
    folder = write_folder(randomised(M2BertModel(tiny_config())), tokenizer, tmp_path / "base")
    base = push(folder, "org/base")
    settings = peft.LoraConfig(r=2, target_modules=["in_proj"], target_parameters=["up.weight"])
    adapted = randomised(peft.get_peft_model(M2BertModel.from_pretrained(folder), settings))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    base_model, plain = (M2BertModel.from_pretrained(folder).eval() for _ in range(2))
    reloaded = peft.PeftModel.from_pretrained(base_model, tmp_path / "adapter").eval()
    assert not torch.equal(pooled(reloaded, tokenizer), pooled(plain, tokenizer))
    torch.save(pooled(reloaded, tokenizer), tmp_path / "expected.pt")
    for path in (tmp_path / "adapter" / "adapter_config.json", tmp_path / "adapter" / "README.md"):
        path.write_text(path.read_text().replace(str(folder), "org/base"))
    adapter = push(tmp_path / "adapter", "org/adapter")
    arguments = ["org/base", base, tmp_path / "expected.pt", json.dumps(TEXTS), "org/adapter", adapter]
    result = stranger(hub, tmp_path / "stranger", LOAD, *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
