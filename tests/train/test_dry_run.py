"""Every shipped configuration starts: two steps in miniature, with its own mixture, loss, form and precision."""

from importlib.resources import files

import pytest
from tiny_runs import ENTRIES

from m2bert.train import retrieval_run as opl
from m2bert.train.settings import load_settings

CONFIGS = sorted(path.name for path in files("m2bert.train").joinpath("configs").iterdir())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_starts(name, caplog):
    with caplog.at_level("INFO"):
        ENTRIES.get(name.split("-")[0], opl).main(["--config", name, "--dry-run"])
    assert "nothing is kept" in caplog.text
    assert "wrote" not in caplog.text


def test_what_was_chosen_stays_and_what_is_large_or_elsewhere_goes():
    wanted = load_settings("opl", ["--config", "loco-32k-opl"])
    settings = load_settings("opl", ["--config", "loco-32k-opl", "--dry-run"])
    assert settings.steps == 2
    assert (settings.data.form, settings.optim) == (wanted.data.form, wanted.optim)
    assert settings.model.path not in (None, wanted.model.path)
    assert settings.data.document_tokens == 64


@pytest.mark.parametrize(
    "arguments",
    [
        ["data.form=grouped", "data.negatives=8", "data.negatives_path=mined.parquet"],
        ["data.development_split=dev"],
        ["data.triples=some/where", "data.negatives=1"],
        ["lora.rank=2", "gradient_checkpointing=true", "model.path=some/where"],
    ],
)
def test_overrides_start_as_well(arguments, caplog):
    if "lora.rank=2" in arguments:
        pytest.importorskip("peft")
    with caplog.at_level("INFO"):
        opl.main(["--dry-run", *arguments])
    assert "nothing is kept" in caplog.text
    assert "wrote" not in caplog.text
