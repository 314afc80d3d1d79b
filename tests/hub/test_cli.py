"""The m2bert command: what it writes, and one line with exit code 2 for bad input."""

import os
import subprocess
import sys

import pytest

import m2bert
from m2bert import cli
from modeling_m2bert import M2BertModel


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


def test_a_broken_checkpoint_is_one_line(monkeypatch, capsys, tmp_path, tiny_config):
    M2BertModel(tiny_config()).save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"")
    code, _, err = run(monkeypatch, capsys, "export", "--model", tmp_path / "checkpoint", "--output", tmp_path / "out")
    assert code == 2
    assert ["model.safetensors" in line for line in err.splitlines() if line.startswith("m2bert: ")] == [True]
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_threads_soon_sleep_while_they_wait_unless_the_user_says_otherwise(given, expected, monkeypatch, capsys):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # what the command sets is undone after the test
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert run(monkeypatch, capsys, "--version")[0] == 0
    assert os.environ.get("GOMP_SPINCOUNT") == expected


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
        ([*run, "bm25", "--hybrid", "rff"], "'standardized' or 'weighted'"),
        ([*run, "bm25", "--data", "./nowhere"], "'./nowhere' is no folder"),
        ([*run, "bm25", "--output", "file"], "file exists"),
        ([*run, "bm25", "--output", "file/x.json"], "cannot be written"),
        ([*run, "bm25", "--output", "x" * 300], "cannot be written"),
        (["eval", "--config", "run.yaml", "--output", "x.json"], "'encoder'; did you mean 'encoders'"),
        (["compare", "file"], "file is no valid JSON"),
        (["report", "file", "--output", "file/x.md"], "cannot be written"),
        (["report", "file", "--output", "x.md"], "none of the files holds a result"),
        (["analyse", "spans", "--data", "./nowhere", "--output", "x.json"], "'./nowhere' is no folder"),
        (["analyse", "needle", "--encoder", "./no", "--data", "x/y", "--output", "x.json"], "'./no' is no folder"),
        (["analyse", "efficiency", "--encoder", "bm25", "--data", "x/y", "--output", "x.json"], "gives no vectors"),
        (["export", "--model", "nowhere", "--output", "out"], "'nowhere' does not exist"),
        (["export", "--model", "model", "--output", "file"], "file exists and is no folder"),
        (["export", "--model", "model", "--output", "out", "--about", "about.yaml"], "'license'"),
        (["convert", "./nowhere", "--output", "out"], "'./nowhere' is no repository"),
        (["convert", "model", "--output", "file/out"], "cannot be written"),
        (["convert", "model", "--output", "out", "--config", "file"], "file is no valid JSON"),
        (["push", "nowhere", "--repo", "a/b"], "'nowhere' does not exist"),
        (["push", "model", "--repo", "a b"], "'a b'"),
    ]
    code = f"""
import sys
from m2bert.cli import main
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
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("m2bert.eval.run.Evaluation", interrupt)
    arguments = ["eval", "--encoder", "bm25", "--data", tmp_path, "--output", tmp_path / "x.json"]
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out, err.strip()) == (130, "", "m2bert: interrupted")


def test_every_command_is_listed(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--help")
    assert code == 0
    listed = {line.split()[1] for line in out.splitlines() if line.startswith("│ ")}
    assert {"analyse", "compare", "convert", "eval", "export", "push", "report"} <= listed
    assert "--encoder" in run(monkeypatch, capsys, "eval", "--help")[1]
