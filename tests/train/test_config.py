"""Run configurations: overrides, and refusals that name the key."""

from importlib.resources import files

import pytest
import yaml

from m2bert.train.config import load_config, namespace


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
        ("optim.lrr=1", "unknown configuration key 'optim.lrr'; did you mean 'optim.lr'"),
        ("step=1", "did you mean 'steps'"),
        ("bad=1", "unknown configuration key 'bad'; known: output_dir, "),
        ("steps=many", "steps is 'many'"),
        ("steps=null", "steps is None"),
        ("optim.lr=abc", "optim.lr is 'abc'"),
        ("data.path={", "no valid YAML"),
        ("data={max_tokens: 64, max_tokens: 32}", "key 'max_tokens' stands twice"),
        ("data.sources=[&a [], *a]", "aliases are not read"),
        ("optim.betas=[0.9, x]", r"optim.betas\[1\] is 'x'"),
        ("optim.betas=[0.9]", "optim.betas is "),
        ("optim.warmup_share=6", "optim.warmup_share is 6"),
        ("optim.warmup_share=-0.1", "optim.warmup_share is -0.1"),
        ("optim.clip_norm=0", "optim.clip_norm is 0"),
        ("optim.research_groups=true", "optim.filter_lr=1e-06 and optim.research_groups=true"),
        ("data.batch_tokens=511", "data.batch_tokens=511 holds no example of data.max_tokens=512"),
        ("data.mask_probability=0", "data.mask_probability is 0"),
        ("data.mask_probability=1.0", "data.mask_probability is 1.0"),
        ("data.mask_probability=.nan", "data.mask_probability is nan"),
        ("steps=-1", "steps is -1"),
        ("evaluation.every=-5", "evaluation.every is -5"),
        ("checkpoint_keep=0", "checkpoint_keep is 0"),
        ("log_every=0", "log_every is 0"),
        ("seed=-1", "seed is -1"),
        ("precision=bf15", "precision is 'bf15'"),
        ("model.start=zeros", "model.start is 'zeros'"),
        ("optim=3", "'optim' is a section"),
        ("--steps", "'--steps' is not understood"),
        ("--config", "needs a file name"),
    ],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(ValueError, match=message):
        load_config("mlm-small.yaml", [argument])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss.name=triplet"], "loss.name is 'triplet'"),
        (["loss.name=mnrl", "data.form=pairs"], "set data.form=all or grouped"),
        (["loss.name=prototype"], "needs loss.teacher"),
        (["loss.name=prototype", "loss.teacher=x"], "data.document_window=first, data.passage_share=0"),
        (["data.form=triples"], "data.form is 'triples'"),
        (["data.document_window=last"], "data.document_window is 'last'"),
        (["data.passage_share=1.5"], "data.passage_share is 1.5"),
        (["data.chunk_tokens=0"], "data.chunk_tokens is 0"),
        (["data.chunk_tokens=16k"], "data.chunk_tokens is '16k'"),
        (["data.triples_limit=0"], "data.triples_limit is 0"),
        (["data.tasks=toy"], "data.tasks is 'toy'"),
        (["data.tasks=[]"], r"data.tasks is \[\]"),
        (["data.tasks=[[1]]"], r"data.tasks\[0\] is \[1\]"),
        (["data.development_share=1.5"], "data.development_share is 1.5"),
        (["data.development_split=null", "data.development_tasks=[a]"], "needs data.development_split"),
        (["data.development_split=test"], "data.development_split=test is the test split"),
        (["data.batch_size=0"], "data.batch_size is 0"),
        (["data.passages_per_document=0"], "data.passages_per_document is 0"),
        (["data.passage_tokens=[96, 16]"], r"data.passage_tokens=\[96, 16\] must be \[shortest, longest\]"),
        (["data.passage_tokens=[16]"], r"data.passage_tokens is \[16\]"),
        (["data.passage_tokens=[0, 16]"], r"data.passage_tokens\[0\] is 0"),
        (["evaluation.batch_tokens=0"], "evaluation.batch_tokens is 0"),
        (["epochs=abc"], "epochs is 'abc'"),
        (["epochs=-1"], "epochs is -1"),
        (["epochs=1", "data.passage_share=1"], "data.passage_share=1 leaves none"),
    ],
)
def test_bad_settings_of_retrieval_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_config("opl-small.yaml", arguments)


def test_rates_may_be_null_and_files_must_be_mappings(tmp_path):
    assert load_config("opl-small.yaml", ["optim.layer_lr=null"])["optim"]["layer_lr"] is None
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="holds no mapping"):
        load_config("opl-small.yaml", ["--config", str(tmp_path / "list.yaml")])


def test_an_unknown_file_is_named():
    with pytest.raises(ValueError, match="'nothing.yaml' is neither a file nor one of the shipped"):
        load_config("mlm-small.yaml", ["--config", "nothing.yaml"])


def test_every_shipped_configuration_fits_its_schema():
    shipped = [path for path in files("m2bert.train").joinpath("configs").iterdir() if path.name.endswith(".yaml")]
    assert len(shipped) >= 2
    for path in shipped:
        default = "mlm-small.yaml" if path.name.startswith("mlm-") else "opl-small.yaml"
        assert set(load_config(default, ["--config", str(path)])) == set(
            yaml.safe_load(files("m2bert.train").joinpath("configs", default).read_text())
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("extends: 7\n", "extends is 7"),
        ("steps: 3\nsteps: 4\n", "key 'steps' stands twice"),
        ("a: &x [1]\nb: *x\n", "aliases are not read"),
    ],
)
def test_files_that_could_mean_two_things_are_refused(tmp_path, content, message):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ValueError, match=f"run.yaml.*{message}"):
        load_config("mlm-small.yaml", ["--config", str(tmp_path / "run.yaml")])


def test_what_is_said_last_of_steps_and_epochs_holds():
    config = load_config("opl-small.yaml", ["--config", "loco-2k-opl"])
    assert config["epochs"] == 1
    assert load_config("opl-small.yaml", ["--config", "loco-2k-opl", "steps=7"])["epochs"] is None
    assert load_config("opl-small.yaml", ["steps=7", "epochs=2"])["epochs"] == 2
