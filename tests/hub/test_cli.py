"""The m2bert command: what it writes, and one line with exit code 2 for bad input."""

import datetime
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import m2bert
from m2bert.hub import cli
from modeling_m2bert import M2BertModel

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "upstream_parity"


def run(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of the command."""
    monkeypatch.setattr(sys, "argv", ["m2bert", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code or 0, captured.out, captured.err


def test_export_writes_a_folder_and_refuses_to_replace_it(monkeypatch, capsys, tmp_path, tiny_config):
    M2BertModel(tiny_config()).save_pretrained(tmp_path / "checkpoint")
    arguments = ["export", "--model", tmp_path / "checkpoint", "--output", tmp_path / "out"]
    code, out, _ = run(monkeypatch, capsys, *arguments)
    assert code == 0
    assert (tmp_path / "out" / "modules.json").is_file()
    assert str(tmp_path / "out") in out
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "--overwrite" in err
    assert run(monkeypatch, capsys, *arguments, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("kind", "container"), [("encoder", "plain"), ("masked_lm", "plain"), ("masked_lm", "composer")]
)
def test_convert_writes_a_loadable_folder(monkeypatch, capsys, tmp_path, kind, container):
    if not FIXTURES.is_dir():
        pytest.skip(f"golden tensors of the original model are not at {FIXTURES}")
    from safetensors import safe_open

    with safe_open(FIXTURES / "base_full.safetensors", "pt") as file:
        meta = file.metadata()
        left_out = json.loads(meta["mlm_only_keys" if kind == "encoder" else "seqcls_only_keys"])
        state = {
            key.removeprefix("state_dict."): file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118
            if key.startswith("state_dict.")
        }
        ids, pooled = file.get_tensor("inputs.input_ids"), file.get_tensor("outputs.pooled_output")
        hidden = file.get_tensor("outputs.sequence_output")
        types, mask = file.get_tensor("inputs.token_type_ids"), file.get_tensor("inputs.attention_mask")
    content = {key: value for key, value in state.items() if key not in left_out}
    if container == "composer":
        model = {f"model.{key}": value for key, value in content.items()}
        random_states = [random.Random(0), np.random.RandomState(0)]
        content = {"state": {"model": model, "timestamp": datetime.timedelta(1)}, "rng": random_states}
    torch.save(content, tmp_path / "weights.bin")
    (tmp_path / "config.json").write_text(meta["config"])
    code, _, err = run(monkeypatch, capsys, "convert", tmp_path / "weights.bin", "--config", tmp_path / "config.json",
                       "--output", tmp_path / "out")  # fmt: skip
    assert code == 0, err
    model = M2BertModel.from_pretrained(tmp_path / "out").double().eval()
    with torch.no_grad():
        outputs = model(ids, mask, types)
    assert (outputs.last_hidden_state - hidden).abs().max() < 1e-5
    if kind == "encoder":
        assert (outputs.pooler_output - pooled).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("model.safetensors", b"", "model.safetensors"),
        ("model.safetensors", b"\xff" * 100, "model.safetensors"),
        ("config.json", b'{"model_type": "m2bert", "num_hidden_layers": "x"}', "num_hidden_layers"),
        ("config.json", b'{"architectures": ["Other"]}', "Other"),
        ("config.json", b"[]", "config.json"),
    ],
)
def test_a_broken_checkpoint_is_one_line(monkeypatch, capsys, tmp_path, tiny_config, name, content, named):
    M2BertModel(tiny_config()).save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / name).write_bytes(content)
    code, _, err = run(monkeypatch, capsys, "export", "--model", tmp_path / "checkpoint", "--output", tmp_path / "out")
    assert code == 2
    assert [named in line for line in err.splitlines() if line.startswith("m2bert: ")] == [True]
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x02cos\nsystem\n."])
def test_weights_that_are_no_state_dict_are_one_line_and_run_nothing(monkeypatch, capsys, tmp_path, content):
    (tmp_path / "weights.bin").write_bytes(content)
    (tmp_path / "config.json").write_text("{}")
    paths = ["--config", tmp_path / "config.json", "--output", tmp_path / "out"]
    code, _, err = run(monkeypatch, capsys, "convert", tmp_path / "weights.bin", *paths)
    assert code == 2
    assert "weights.bin" in err
    assert not (tmp_path / "out").exists()


def test_importing_the_command_does_not_import_the_evaluation():
    code = "import sys, m2bert.hub.cli; assert not {'m2bert.eval', 'datasets', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mistakes_are_told_before_anything_slow_is_imported(tmp_path):
    (tmp_path / "file").write_text("[")
    (tmp_path / "run.yaml").write_text("tasks: {data: x}\nencoder: bm25\n")
    (tmp_path / "about.yaml").write_text("licence: mit\n")
    (tmp_path / "model").mkdir()
    run = ["eval", "--data", "x/y", "--output", "new/x.json", "--encoder"]
    cases = [
        (["eval", "--encodr", "bm25"], "--encoder"),
        (["evl"], "eval"),
        (["analyse", "lenghts"], "lengths"),
        ([*run, "bm52"], "did you mean 'bm25'"),
        ([*run, "./nowhere"], "is no folder"),
        ([*run, "bm25", "--policy", "trunc"], "did you mean 'truncate'"),
        ([*run, "bm25", "--hybrid", "rff"], "did you mean 'rrf'"),
        ([*run, "bm25", "--data", "./nowhere"], "'./nowhere' is no folder"),
        ([*run, "bm25", "--output", "file"], "file exists"),
        ([*run, "bm25", "--output", "file/x.json"], "cannot be written"),
        ([*run, "bm25", "--output", "x" * 300], "cannot be written"),
        (["eval", "--config", "run.yaml", "--output", "x.json"], "'encoder'; did you mean 'encoders'"),
        (["compare", "file"], "no result file: file"),
        (["report", "file", "--output", "file/x.md"], "cannot be written"),
        (["report", "file", "--output", "x.md"], "none of the files holds a result"),
        (["analyse", "spans", "--data", "./nowhere", "--output", "x.json"], "'./nowhere' is no folder"),
        (["analyse", "needle", "--encoder", "./no", "--data", "x/y", "--output", "x.json"], "'./no' is no folder"),
        (["analyse", "efficiency", "--encoder", "bm25", "--data", "x/y", "--output", "x.json"], "gives no vectors"),
        (["export", "--model", "nowhere", "--output", "out"], "nowhere does not exist"),
        (["export", "--model", "model", "--output", "file"], "file exists and is no folder"),
        (["export", "--model", "model", "--output", "out", "--about", "about.yaml"], "'license'"),
        (["convert", "./nowhere", "--output", "out"], "./nowhere is no file"),
        (["convert", "model", "--output", "file/out"], "cannot be written"),
        (["convert", "model", "--output", "out", "--config", "file"], "file is no valid JSON"),
        (["push", "nowhere", "--repo", "a/b"], "nowhere does not exist"),
        (["push", "model", "--repo", "a b"], "'a b'"),
    ]
    code = f"""
import sys
from m2bert.hub.cli import main
for arguments, _ in {cases}:
    sys.argv = ["m2bert", *arguments]
    print("next", file=sys.stderr)
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 2, arguments
    slow = {{"torch", "transformers", "sentence_transformers", "sklearn", "scipy", "datasets", "matplotlib", "bm25s"}}
    assert not slow & set(sys.modules), (arguments, slow & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (arguments, message), said in zip(cases, done.stderr.split("next\n")[1:], strict=True):
        assert message in " ".join(said.split()), arguments
        assert "Traceback" not in said
    assert not (tmp_path / "new").exists()


def test_the_version_is_shown(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version")[:2] == (0, f"{m2bert.__version__}\n")


def test_an_interruption_is_one_line_and_130(monkeypatch, capsys, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("m2bert.eval.plan.make_plan", interrupt)
    arguments = ["eval", "--encoder", "bm25", "--data", tmp_path, "--output", tmp_path / "x.json"]
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out, err.strip()) == (130, "", "m2bert: interrupted")


def test_every_command_is_listed(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--help")
    assert code == 0
    listed = {line.split()[1] for line in out.splitlines() if line.startswith("│ ")}
    assert {"analyse", "compare", "convert", "eval", "export", "push", "report"} <= listed
    assert "--encoder" in run(monkeypatch, capsys, "eval", "--help")[1]
