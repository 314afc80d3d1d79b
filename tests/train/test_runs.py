"""The entry points, end to end on a tiny corpus: repeatable, loadable, careful with what exists, and their options."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import ENTRIES, ROOT, arguments, finish, here, launch, record, same, weights
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from m2bert.train import trainer
from m2bert.train.trainer import Finished
from modeling_m2bert import m2bert_ops_product


@pytest.fixture
def train(toy_corpus, tmp_path):
    """Run an entry point in this process with more arguments; return the output of that name."""

    def run(entry, name, *more):
        here(entry, arguments(entry, toy_corpus, tmp_path / name, "evaluation.every=2", *more))
        return tmp_path / name

    return run


def test_pretraining_then_fine_tuning(train):
    pretrained = train("mlm", "mlm")
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    assert tokenizer.mask_token_id is not None
    assert AutoModelForMaskedLM.from_pretrained(pretrained).config.sparse_prediction is False
    found = record(pretrained)
    assert [row["step"] for row in found["history"]] == [1, 2, 3]
    assert found["history"][-1]["held_out_loss"] > 0
    assert found["config"]["steps"] == 3
    assert found["versions"]["torch"]

    tuned = train("opl", "opl", f"model.path={pretrained}")
    encoder = AutoModel.from_pretrained(tuned)
    assert encoder.config.pooling == "weighted_mean"
    vectors = encoder(**tokenizer(["budget", "river report"], padding=True, return_tensors="pt")).pooler_output
    assert vectors.shape == (2, 6 * 16)
    assert vectors.isfinite().all()
    assert AutoTokenizer.from_pretrained(tuned).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_run_repeats_bit_for_bit(train, entry):
    a, b, c = (train(entry, name, f"seed={seed}") for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert same(weights(a), weights(b))
    assert not same(weights(a), weights(c))
    assert record(a)["data_fingerprint"] == record(b)["data_fingerprint"]
    assert len(record(a)["data_fingerprint"]) == 64


def test_a_checkpoint_keeps_its_architecture_and_its_token_weights(toy_corpus, train, tmp_path):
    first = train("opl", "first", "model.architecture.num_hidden_layers=3", "model.architecture.num_pooling_heads=2")
    given = arguments("opl", toy_corpus, tmp_path / "again", "steps=0", f"model.path={first}")
    here("opl", [argument for argument in given if "architecture" not in argument])
    assert same(weights(first), weights(tmp_path / "again"))


def test_checkpoints_and_tokenizers_that_do_not_fit_are_refused_before_training(train, tmp_path, capsys):
    small, large = (train("opl", f"of-{size}", "steps=0", f"tokenizer.vocab_size={size}") for size in (60, 200))
    pretrained = train("mlm", "mlm", "steps=0")
    tensors = weights(pretrained)
    del tensors["model.layers.0.mixer.in_proj.weight"]
    save_file(tensors, pretrained / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    with pytest.raises(ValueError, match="tokenizer gives ids up to"):
        train("opl", "out", f"model.path={small}", f"tokenizer.path={large}")
    with pytest.raises(ValueError, match="missing: .*layers.0.mixer.in_proj.weight"):
        train("opl", "out", f"model.path={pretrained}")
    assert "step" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("entry", ENTRIES)
def test_bf16_computes_otherwise_and_keeps_float32_weights(train, entry):
    full, half = train(entry, "full"), train(entry, "half", "precision=bf16")
    losses = [record(folder)["history"][-1 if entry == "opl" else 0]["loss"] for folder in (full, half)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {tensor.dtype for tensor in weights(half).values()} == {torch.float32}


@pytest.mark.parametrize(("slow", "warned"), [((), False), ((torch.bfloat16,), True)])
def test_a_precision_that_the_processor_has_no_instructions_for_is_named(train, monkeypatch, caplog, slow, warned):
    monkeypatch.setattr(m2bert_ops_product, "SLOW_DTYPES", slow)
    train("mlm", "half", "precision=bf16", "steps=0")
    assert ("no instructions for precision=bf16; precision=no is faster" in caplog.text) == warned


def test_gradient_checkpointing_changes_nothing(train):
    dropout = "model.architecture.hidden_dropout_prob=0.1"
    plain, checkpointed = (
        train("mlm", value, dropout, f"gradient_checkpointing={value}") for value in ("false", "true")
    )
    assert same(weights(plain), weights(checkpointed))


def test_tensorboard_gets_every_record_and_its_files_stay(train, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = record(train("mlm", "out", "tracker=tensorboard", "checkpoint_every=1"))["history"]
    (events,) = (tmp_path / "out.run").rglob("events.out.tfevents.*")
    logged = EventAccumulator(str(events.parent)).Reload()
    assert [event.step for event in logged.Scalars("loss")] == [1, 2, 3]
    assert [event.value for event in logged.Scalars("loss")] == pytest.approx([row["loss"] for row in history])
    assert logged.Scalars("held_out_loss")
    assert not list((tmp_path / "out.run").glob("step-*"))


def test_runs_that_are_there_are_left_alone_unless_the_arguments_say_what_to_do(train, tmp_path):
    (tmp_path / "out.run" / "step-00000001").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"unfinished run .*step-00000001.*resume=true.*overwrite=true"):
        train("mlm", "out", "checkpoint_every=1")
    before = (train("mlm", "out", "checkpoint_every=1", "overwrite=true") / "model.safetensors").stat().st_mtime_ns
    assert not (tmp_path / "out.run").exists()
    with pytest.raises(ValueError, match="not empty"):
        train("mlm", "out")
    for left in ("step-00000001", ".step-00000002", "best-00000001.safetensors"):  # by a kill at the last clean-up
        (tmp_path / "out.run" / left).mkdir(parents=True)
    with pytest.raises(Finished, match="is finished; nothing to do"):
        train("mlm", "out", "resume=true", "log_every=2")
    assert not (tmp_path / "out.run").exists()
    with pytest.raises(ValueError, match=r"is finished, and of another run \(config.steps: 3 there, 4 here\)"):
        train("mlm", "out", "resume=true", "steps=4")
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    for content, named in (('{"identity": 7}', "identity is 7"), ("{}", "identity is missing"), ("", "")):
        (tmp_path / "out" / "training.json").write_text(content)
        with pytest.raises(ValueError, match=f"out/training.json.*{named}"):
            train("mlm", "out", "resume=true")


def test_a_second_run_into_the_same_output_is_refused_at_once(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "run_loop", lambda *_, **__: train("mlm", "out", "overwrite=true"))
        with pytest.raises(ValueError, match=f"another process writes to {tmp_path / 'out.run'}"):
            train("mlm", "out")
    assert (train("mlm", "out/") / "model.safetensors").is_file()
    assert not (tmp_path / "out.run").exists()


def test_a_run_that_replaces_a_finished_one_goes_on_too(train, tmp_path, monkeypatch):
    train("mlm", "out", "steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "finish", lambda *_: (_ for _ in ()).throw(InterruptedError))
        with pytest.raises(InterruptedError):
            train("mlm", "out", "steps=4", "overwrite=true", "checkpoint_every=1")
    assert (tmp_path / "out.run" / "step-00000003").is_dir()
    found = record(train("mlm", "out", "steps=4", "overwrite=true", "checkpoint_every=1", "resume=true"))
    assert found["config"]["steps"] == 4
    assert [row["step"] for row in found["history"]] == [1, 2, 3, 4]


def test_what_is_found_late_is_named_and_leaves_nothing(train, tmp_path, monkeypatch):
    for argument, named in (("data.tasks=[other]", "other"), ("tracker=abacus", "abacus"), ("tracker=comet_ml",) * 2):
        with pytest.raises(ValueError, match=named):
            train("opl", "out", argument)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started and 1 would train together.*ACCELERATE_USE_CPU"):
        train("mlm", "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "processes"), [("mlm", 1), ("mlm", 2), ("align", 2)])
def test_a_run_stopped_by_sigterm_goes_on(toy_corpus, tmp_path, entry, processes):
    more = ["steps=300", "checkpoint_every=30", "resume=true", "log_every=100", "evaluation.every=0",
            "model.architecture.hidden_dropout_prob=0.1", "gradient_checkpointing=true"]  # fmt: skip
    given, unbroken = (arguments(entry, toy_corpus, tmp_path / name, *more) for name in ("out", "whole"))
    whole, process = (launch([ROOT / "train" / f"{entry}.py", *each], processes, start_new_session=True)
                      for each in (unbroken, given))  # fmt: skip
    while not list((tmp_path / "out.run").glob("step-*")) and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert "stopped by SIGTERM after step" in errors, errors
    assert "saved; go on with resume=true" in errors
    assert "Traceback" not in errors or processes > 1  # torchrun reports its workers' exit codes in its own words
    if processes == 1:
        assert process.returncode == 128 + signal.SIGTERM
    else:
        with pytest.raises(ValueError, match="processes: 2 there, 1 here"):
            here(entry, given)
    for run in (launch([ROOT / "train" / f"{entry}.py", *given], processes), whole):
        finish(run)
    assert same(weights(tmp_path / "out"), weights(tmp_path / "whole"))
    assert record(tmp_path / "out")["processes"] == processes


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_compiled_run_trains_the_same_model(toy_corpus, tmp_path, entry):
    more = ["checkpoint_every=2", *(["evaluation.select=true"] if entry == "opl" else [])]
    for value in ("false", "true"):
        given = arguments(entry, toy_corpus, tmp_path / value, *more, f"compile={value}")
        finish(launch([ROOT / "train" / f"{entry}.py", *given]), timeout=560)
    a, b = weights(tmp_path / "false"), weights(tmp_path / "true")
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-4) for name in a)
