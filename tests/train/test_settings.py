"""Settings: files and overrides laid over the default, and refusals that name the key."""

from importlib.resources import files

import pytest

from m2bert.train.settings import SCHEMAS, load_settings, read_yaml

CONFIGS = sorted(path.name for path in files("m2bert.train").joinpath("configs").iterdir())


def test_files_and_overrides_are_laid_over_the_default_and_what_they_extend(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: opl-small\nsteps: 7\nseed: 3\ndata: {chunk_tokens: 64}\n")
    (tmp_path / "leaf.yaml").write_text(
        "extends: base.yaml\nsteps: 9\noptim:\n  lr: 1e-3\nmodel:\n  path: somewhere\n  architecture: {num_blocks: 2}\n"
    )
    default = load_settings("opl", [])
    settings = load_settings("opl", ["--config", str(tmp_path / "leaf.yaml"), "data.document_tokens=64"])
    assert (settings.steps, settings.seed, settings.data.chunk_tokens) == (9, 3, 64)
    assert settings.optim == default.optim.model_copy(update={"lr": 0.001})
    assert settings.data.document_tokens == 64
    assert settings.model.architecture == default.model.architecture | {"num_blocks": 2}
    unset = ["data.chunk_tokens=null", "model.path=null", "optim.layer_lr=null", "steps=8"]
    settings = load_settings("opl", ["--config", str(tmp_path / "leaf.yaml"), *unset])
    assert settings.data.chunk_tokens is settings.model.path is settings.optim.layer_lr is None
    assert settings.steps == 8


BAD = {
    "mlm": """
        optim.lrr=1 step=1 steps=many steps=null steps=-1 optim.lr=abc data.path={ data={max_tokens:1,max_tokens:2}
        data.sources=[&a[],*a] data.sources=[] optim.betas=[0.9,x] optim.betas=[0.9] optim.warmup_share=6
        optim.warmup_share=-0.1 optim.clip_norm=0 optim.research_groups=true data.batch_tokens=511
        data.mask_probability=0 data.mask_probability=1.0 data.mask_probability=.nan evaluation.every=-5
        checkpoint_every=-1 checkpoint_keep=0 log_every=0 seed=-1 precision=bf15 model.start=zeros optim=3 --steps
        --config --config+nothing.yaml""",
    "opl": """
        loss.name=triplet data.form=pairs+loss.name=mnrl loss.name=prototype loss.teacher=x+loss.name=prototype
        data.form=triples data.document_window=last data.passage_share=1.5 data.chunk_tokens=0 data.chunk_tokens=16k
        data.triples_limit=0 data.tasks=toy data.tasks=[] data.tasks=[[1]] data.development_share=1.5
        data.development_split=null+data.development_tasks=[a] data.development_split=test data.development_split=train
        data.triples=org/queries-test data.batch_size=0 data.passages_per_document=0 data.passage_tokens=[96,16]
        data.passage_tokens=[16] data.passage_tokens=[0,16] evaluation.batch_tokens=0 data.passage_share=1+epochs=1
        epochs=abc epochs=-1 prepare=x+data.prepared=y lora.rank=8""",
    "align": """
        data.stretch_tokens=2047 data.stretch_tokens=2 data.span_tokens=[9,5] data.span_tokens=[5]
        data.span_tokens=[0,5] data.max_tokens=100+data.stretch_tokens=99 loss.temperature=0 loss.score_weight=-1
        data.sources=[] data.chars=0 evaluation.chars=null data.token_cache=x data.accumulate=2""",
}


@pytest.mark.parametrize(("name", "arguments"), [(name, argument) for name in BAD for argument in BAD[name].split()])
def test_bad_arguments_are_named(name, arguments):
    """By the key of the last one."""
    given = arguments.split("+")
    with pytest.raises(ValueError, match=".") as error:
        load_settings(name, given)
    for part in given[-1].split("=")[0].removeprefix("--").removesuffix(".yaml").split("."):
        assert part in str(error.value)


def test_the_nearest_key_and_the_nearest_file_are_suggested():
    for arguments, near in ((["optim.lrr=1"], "'lr'"), (["step=1"], "'steps'"), (["--config", "mlm-2m"], "'mlm-2k'")):
        with pytest.raises(ValueError, match=f"did you mean {near}"):
            load_settings("mlm", arguments)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_configuration_fits_its_schema_and_says_where_it_writes(name):
    first = name.split("-")[0]
    entry = first if first in SCHEMAS else "opl"
    settings = load_settings(entry, ["--config", name]).model_dump()
    assert set(settings) == set(read_yaml(f"{entry}-small"))
    assert settings["output_dir"] == f"runs/{name.removesuffix('.yaml')}"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("extends: run.yaml", "extends itself"),
        ("extends: 7", "'7'"),
        ("- 1", "run.yaml"),
        ("steps: 3\nsteps: 4", "run.yaml.*steps"),
        ("seed: &x 1\nsteps: *x", "run.yaml.*alias"),
    ],
)
def test_files_that_are_wrong_are_named(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ValueError, match=named):
        load_settings("mlm", ["--config", "run.yaml"])


def test_the_last_of_steps_and_epochs_counts():
    assert load_settings("opl", ["--config", "loco-2k-opl"]).epochs == 1
    assert load_settings("opl", ["--config", "loco-2k-opl", "steps=7"]).epochs is None
    assert load_settings("opl", ["steps=7", "epochs=2"]).epochs == 2
