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
        default = f"{path.name.split('-')[0]}-small.yaml"
        assert set(load_config(default, ["--config", str(path)])) == set(
            yaml.safe_load(files("m2bert_train").joinpath("configs", default).read_text())
        )
