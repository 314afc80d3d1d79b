"""Run configurations: overrides, and refusals that name the key."""

from importlib.resources import files

import pytest
import yaml

from m2bert_train.config import load_config, namespace


def test_overrides_are_laid_over_the_default(tmp_path):
    (tmp_path / "run.yaml").write_text("steps: 7\noptim:\n  lr: 1e-3\nmodel:\n  architecture: {num_blocks: 2}\n")
    default = load_config("opl-small.yaml", [])
    config = load_config(
        "opl-small.yaml", ["--config", str(tmp_path / "run.yaml"), "data.document_tokens=64", "steps=8"]
    )
    assert config["steps"] == 8
    assert config["optim"] == default["optim"] | {"lr": 0.001}
    assert config["data"]["document_tokens"] == 64
    assert config["model"]["architecture"] == default["model"]["architecture"] | {"num_blocks": 2}
    assert namespace(config).optim.lr == 0.001


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optim.lrr=1", "unknown configuration key 'optim.lrr'; the nearest known one is 'optim.lr'"),
        ("step=1", "nearest known one is 'steps'"),
        ("steps=many", "'steps' takes int, not 'many'"),
        ("steps=null", "'steps' takes int, not None"),
        ("optim.lr=abc", "'optim.lr' takes float, not 'abc'"),
        ("data.path={", "no valid YAML"),
        ("optim=3", "'optim' is a section"),
        ("--steps", "'--steps' is not understood"),
        ("--config", "needs a file name"),
    ],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(ValueError, match=message):
        load_config("mlm-small.yaml", [argument])


def test_rates_may_be_null_and_files_must_be_mappings(tmp_path):
    assert load_config("opl-small.yaml", ["optim.layer_lr=null"])["optim"]["layer_lr"] is None
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="holds no mapping"):
        load_config("opl-small.yaml", ["--config", str(tmp_path / "list.yaml")])


def test_an_unknown_file_is_named():
    with pytest.raises(ValueError, match="'nothing.yaml' is neither a file nor one of the shipped"):
        load_config("mlm-small.yaml", ["--config", "nothing.yaml"])


def test_every_shipped_configuration_fits_its_schema():
    shipped = [path for path in files("m2bert_train").joinpath("configs").iterdir() if path.name.endswith(".yaml")]
    assert len(shipped) >= 2
    for path in shipped:
        default = "mlm-small.yaml" if path.name.startswith("mlm-") else "opl-small.yaml"
        assert set(load_config(default, ["--config", str(path)])) == set(
            yaml.safe_load(files("m2bert_train").joinpath("configs", default).read_text())
        )


def test_a_file_extends_another_beside_it_or_shipped(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: opl-small\nsteps: 7\nseed: 3\ndata: {chunk_tokens: 64}\n")
    (tmp_path / "leaf.yaml").write_text("extends: base.yaml\nsteps: 9\n")
    config = load_config("opl-small.yaml", ["--config", str(tmp_path / "leaf.yaml")])
    assert (config["steps"], config["seed"], config["data"]["chunk_tokens"]) == (9, 3, 64)
    assert "extends" not in config


def test_what_is_null_by_default_can_be_set_and_unset(tmp_path):
    (tmp_path / "base.yaml").write_text("data: {chunk_tokens: 64}\nmodel: {path: somewhere}\n")
    arguments = ["--config", str(tmp_path / "base.yaml"), "data.chunk_tokens=null", "model.path=null"]
    config = load_config("opl-small.yaml", arguments)
    assert config["data"]["chunk_tokens"] is config["model"]["path"] is None


def test_circles_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ValueError, match="extends itself"):
        load_config("opl-small.yaml", ["--config", str(tmp_path / "a.yaml")])


def test_what_is_said_last_of_steps_and_epochs_holds():
    config = load_config("opl-small.yaml", ["--config", "loco-2k-opl"])
    assert config["epochs"] == 1
    assert load_config("opl-small.yaml", ["--config", "loco-2k-opl", "steps=7"])["epochs"] is None
    assert load_config("opl-small.yaml", ["steps=7", "epochs=2"])["epochs"] == 2
