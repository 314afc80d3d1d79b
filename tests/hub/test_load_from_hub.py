"""From a folder over a push to a stranger's process: the Auto classes and sentence-transformers load what was sent.

The stranger cannot import this package, has an empty cache, and talks to a Hub on 127.0.0.1 with the real client.
"""

import json
import subprocess
import sys

import pytest
import torch
from fake_hub import READ_TOKEN, FakeHub

from m2bert.hub.clean_load import OURS
from m2bert.hub.folder import write_folder
from m2bert.hub.push import carry_out, plan_push
from modeling_m2bert import M2BertModel

TEXTS = ["the budget of the committee", "a report", "", "minutes of a meeting about a budget report"]
LOAD = f"""
import json, sys
sys.modules.update(dict.fromkeys({OURS}))
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


@pytest.mark.slow
def test_a_stranger_loads_the_pinned_commit_of_a_private_model_and_an_adapter_on_it(
    monkeypatch, tmp_path, tiny_config, randomized, tokenizer
):
    """The vectors are the same, also after the branch moved on. Without a token the model does not exist."""
    peft = pytest.importorskip("peft")

    def pooled(model, name):
        """Save what the stranger should get."""
        with torch.no_grad():
            torch.save(model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output, tmp_path / name)
        return tmp_path / name

    def push(folder, repo_id, **options):
        return carry_out(plan_push(folder, repo_id, **options)).oid

    def load(home, *arguments, token=READ_TOKEN):
        """Load in a process of somebody without this package; `home` is its cache."""
        command = [sys.executable, "-c", LOAD, "org/m2bert", sha, expected, json.dumps(TEXTS), *arguments]
        environment = hub.environment(tmp_path / home, token)
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    with FakeHub() as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        model = randomized(M2BertModel(tiny_config(pooling="weighted_mean", num_pooling_heads=2)))
        expected = pooled(model, "expected.pt")
        folder = write_folder(model, tokenizer, tmp_path / "model")
        sha = push(folder, "org/m2bert", private=True)
        assert push(write_folder(M2BertModel(tiny_config()), tokenizer, tmp_path / "other"), "org/m2bert") != sha
        result = load("stranger", token=None)
        assert result.returncode == 1
        assert "org/m2bert is not a local folder and is not a valid model identifier" in result.stderr
        result = load("friend")
        assert result.returncode == 0, result.stderr[-3000:]

        settings = peft.LoraConfig(r=2, target_modules=["in_proj"], target_parameters=["up.weight"])
        adapted = randomized(peft.get_peft_model(M2BertModel.from_pretrained(folder), settings))
        adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        reloaded = peft.PeftModel.from_pretrained(M2BertModel.from_pretrained(folder).eval(), tmp_path / "adapter")
        plain, expected = expected, pooled(reloaded.eval(), "adapted.pt")
        assert not torch.equal(torch.load(plain), torch.load(expected))
        for path in (tmp_path / "adapter" / "adapter_config.json", tmp_path / "adapter" / "README.md"):
            path.write_text(path.read_text().replace(str(folder), "org/m2bert"))
        result = load("friend", "org/adapter", push(tmp_path / "adapter", "org/adapter"))
        assert result.returncode == 0, result.stderr[-3000:]
