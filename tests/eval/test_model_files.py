"""Records tie a score to the files that it was measured on."""

import hashlib
import json

from typer.testing import CliRunner

from m2bert.eval.cli import app
from m2bert.eval.encoders.fingerprint import model_files


def test_weights_settings_and_tokenizer_count_and_nothing_else(tmp_path):
    for name in (
        "model.safetensors",
        "config.json",
        "vocab.txt",
        "1_Dense/model.safetensors",
        "2_Normalize/config.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    expected = {p: hashlib.sha256(p.encode()).hexdigest() for p in model_files(tmp_path)}
    assert len(expected) == 5
    for name in ("README.md", "training.json", "conversion.json", "code.py", "runs/other.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert model_files(tmp_path) == expected


def test_what_is_no_folder_has_no_files(tmp_path):
    assert model_files("org/name") is None
    assert model_files(tmp_path / "missing") is None


def test_a_record_holds_the_files_of_its_model(tiny_data, tiny_model, tmp_path):
    output = tmp_path / "results.json"
    arguments = ["--data", str(tiny_data), "--task", "tiny", "--output", str(output), "--no-cache"]
    result = CliRunner().invoke(app, ["eval", "--encoder", "bm25", "--encoder", str(tiny_model), *arguments])
    assert result.exit_code == 0, result.output
    bm25, model = json.loads(output.read_text())["results"]
    assert "model_files" not in bm25
    assert model["model_files"] == model_files(tiny_model)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= model["model_files"].keys()
