"""A run from prepared data, where no data library exists, is the run that reads the text itself."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from m2bert.train import mlm_run
from m2bert.train.inputs import ready

MISSING = ["datasets", "pyarrow", "sentence_transformers", "pandas", "sklearn", "scipy", "evaluate", "mteb", "bm25s",
           "pytrec_eval", "matplotlib", "peft"]  # fmt: skip
# With None in sys.modules a package cannot be imported, nor found by those who ask whether it is there.
BARE = f"""
import sys
sys.modules.update(dict.fromkeys({MISSING}))
from m2bert.train.start import train
train("mlm", sys.argv[1:])
"""
TINY = ["model.architecture.hidden_size=16", "model.architecture.num_hidden_layers=1", "steps=6", "log_every=2",
        "model.architecture.intermediate_size=32", "model.architecture.max_position_embeddings=64",
        "model.architecture.filter_order=8", "tokenizer.vocab_size=100", "data.max_tokens=32", "data.batch_tokens=128",
        "data.accumulate=2", "evaluation.examples=4", "evaluation.every=3"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two sources' text, one of them a single file, and what was prepared of it."""
    folder = tmp_path_factory.mktemp("prepared")
    texts = [f"text number {i} of " + "many words and more " * (i % 9) for i in range(80)]
    (folder / "web").mkdir()
    (folder / "web" / "train.txt").write_text("\n\n".join(texts[:40]))
    (folder / "web" / "validation.txt").write_text("\n\n".join(texts[30:40]))
    (folder / "books.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[40:]))
    mlm_run.main([*arguments(folder), f"prepare={folder / 'made'}"])
    return folder


def arguments(folder):
    shares = "variable: 0.25, maximum: 0.25"
    sources = ", ".join(f"{{path: {folder / name}, {shares}}}" for name in ("web", "books.jsonl"))
    return [*TINY, f"data.sources=[{sources}]", f"data.token_cache={folder / 'cache'}"]


def outcome(folder):
    record = json.loads((folder / "training.json").read_text())
    measured = ("seconds", "tokens_per_second", "waiting_share", "peak_memory_bytes", "evaluation_seconds")
    history = [{key: value for key, value in row.items() if key not in measured} for row in record["history"]]
    return history, record["totals"], record["data"], record["mixture"], record["data_fingerprint"]


def test_a_machine_without_data_libraries_trains_the_same_model(place, tmp_path):
    mlm_run.main([*arguments(place), f"output_dir={tmp_path / 'usual'}"])
    given = [*TINY, f"data.prepared={place / 'made'}", f"output_dir={tmp_path / 'bare'}"]
    done = subprocess.run([sys.executable, "-c", BARE, *given], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    usual, bare = (load_file(tmp_path / name / "model.safetensors") for name in ("usual", "bare"))
    assert usual.keys() == bare.keys()
    assert all(torch.equal(usual[name], bare[name]) for name in usual)
    assert outcome(tmp_path / "usual") == outcome(tmp_path / "bare")
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("usual", "bare")]
    assert names[0] == names[1]
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (tmp_path / "usual" / name).read_bytes() == (tmp_path / "bare" / name).read_bytes()


@pytest.mark.parametrize("name", ["text1.safetensors", "tokenizer/tokenizer.json", "prepared.json"])
def test_damaged_prepared_data_is_refused(place, tmp_path, name):
    file = place / "made" / name
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    try:
        with pytest.raises(ValueError, match=name):
            mlm_run.main([*TINY, f"data.prepared={place / 'made'}", f"output_dir={tmp_path / 'out'}"])
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["data.prepared=nowhere"], "data.prepared=nowhere"),
        (["prepare=MADE"], "prepare="),
        (["prepare=new", "data.prepared=MADE"], "prepare=new"),
        (["prepare=new", "data.sources=[{path: org/name}]", "tokenizer.path=a/b"], "org/name is streamed"),
    ],
)
def test_what_cannot_be_prepared_is_refused_at_once(place, tmp_path, monkeypatch, given, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=named):
        ready("mlm", [each.replace("MADE", str(place / "made")) for each in given])
    assert not (tmp_path / "new").exists()


def test_other_sources_than_the_prepared_are_refused(place, tmp_path):
    other = f"data.sources=[{{path: {place / 'web'}}}]"
    with pytest.raises(ValueError, match="data.sources"):
        mlm_run.main([*TINY, other, f"data.prepared={place / 'made'}", f"output_dir={tmp_path / 'out'}"])
