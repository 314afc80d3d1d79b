"""Sources to convert: as folders, in a cache and on a Hub of this machine."""

import json
from pathlib import Path

import huggingface_hub
from fake_hub import FakeHub
from safetensors.torch import save, save_file

CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "committee", "met", "budget", "library", "and", "a"]


def go_offline(monkeypatch, tmp_path):
    """No test leaves this machine; the cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def go_online(monkeypatch, tmp_path, fake: FakeHub):
    """The client talks to the server of this machine."""
    fake.connect(monkeypatch, tmp_path / "home")
    template = fake.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def embedding_tensors(fixture):
    """Once each, as a file of safetensors wants them."""
    return {name: tensor.clone() for name, tensor in fixture.embedding_state().items()}


def write_source(folder: Path, fixture) -> Path:
    """A clone of a repository."""
    folder.mkdir(parents=True)
    save_file(embedding_tensors(fixture), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(fixture.config | {"auto_map": {"AutoConfig": "evil.Config"}}))
    (folder / "evil.py").write_text("raise RuntimeError")
    return folder


def repository(fixture) -> dict[str, bytes]:
    vocabulary = "\n".join(WORDS).encode()
    config = fixture.config | {"model_type": "m2_bert", "auto_map": {"AutoConfig": "evil.Config"}}
    return {
        "model.safetensors": save(embedding_tensors(fixture)),
        "pytorch_model.bin": b"stale",
        "config.json": json.dumps(config).encode(),
        "vocab.txt": vocabulary,
        "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer"}',
        "README.md": CARD,
        "evil.py": b"raise RuntimeError",
    }


def record_of(folder) -> dict:
    return json.loads((folder / "conversion.json").read_text())


def fill_cache(cache: Path, repo_id: str, files: dict[str, bytes]) -> str:
    """As after a download."""
    commit = "ab" * 20
    folder = cache / f"models--{repo_id.replace('/', '--')}"
    for name, content in {f"snapshots/{commit}/{n}": c for n, c in files.items()}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    return commit
