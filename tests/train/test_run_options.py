"""What both entry points offer around training: precision, trackers, gradient checkpointing, compilation, stopping and
resuming as processes, two processes included.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m2bert.train import mlm_run as mlm
from m2bert.train import retrieval_run as opl
from m2bert.train.runs import Finished

ROOT = Path(__file__).parents[2]
MODEL = ["model.architecture.hidden_size=16", "model.architecture.num_hidden_layers=1", "log_every=1",
         "model.architecture.intermediate_size=32", "model.architecture.max_position_embeddings=64",
         "model.architecture.filter_order=8", "tokenizer.vocab_size=200", "evaluation.every=2"]  # fmt: skip
MLM = [*MODEL, "data.max_tokens=32", "data.batch_tokens=64", "evaluation.examples=2"]
OPL = [*MODEL, "data.batch_size=4", "data.document_tokens=40", "data.passage_tokens=[2, 4]"]


def arguments(entry, corpus, output, *more):
    if entry == "mlm":
        return [*MLM, f"data.sources=[{{path: {corpus}}}]", f"data.token_cache={corpus}/tokens",
                f"output_dir={output}", *more]  # fmt: skip
    return [*OPL, f"data.path={corpus}", f"output_dir={output}", *more]


def weights(folder):
    return load_file(folder / "model.safetensors")


def record(folder):
    return json.loads((folder / "training.json").read_text())


def launch(entry, given, processes=1):
    command = [sys.executable, str(ROOT / "train" / f"{entry}.py"), *given]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize("entry", ["mlm", "opl"])
def test_bf16_computes_otherwise_and_keeps_float32_weights(toy_corpus, tmp_path, entry):
    main = {"mlm": mlm, "opl": opl}[entry].main
    main(arguments(entry, toy_corpus, tmp_path / "full", "steps=2"))
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    main(arguments(entry, toy_corpus, tmp_path / "half", "steps=2", "precision=bf16"))
    full, half = (record(tmp_path / name)["history"][0]["loss"] for name in ("full", "half"))
    assert full != half
    assert half == pytest.approx(full, rel=0.02)
    assert {tensor.dtype for tensor in weights(tmp_path / "half").values()} == {torch.float32}


def test_gradient_checkpointing_changes_nothing(toy_corpus, tmp_path):
    dropout = "model.architecture.hidden_dropout_prob=0.1"
    for name, value in (("plain", "false"), ("checkpointed", "true")):
        given = arguments("mlm", toy_corpus, tmp_path / name, "steps=2", dropout, f"gradient_checkpointing={value}")
        mlm.main(given)
    plain, checkpointed = (weights(tmp_path / name) for name in ("plain", "checkpointed"))
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_tensorboard_gets_every_record_and_its_files_stay(toy_corpus, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    mlm.main(arguments("mlm", toy_corpus, tmp_path / "out", "steps=3", "tracker=tensorboard", "checkpoint_every=1"))
    (events,) = (tmp_path / "out.run").rglob("events.out.tfevents.*")
    logged = EventAccumulator(str(events.parent)).Reload()
    history = record(tmp_path / "out")["history"]
    assert [event.step for event in logged.Scalars("loss")] == [1, 2, 3]
    assert [event.value for event in logged.Scalars("loss")] == pytest.approx([row["loss"] for row in history])
    assert logged.Scalars("held_out_loss")
    assert not list((tmp_path / "out.run").glob("step-*"))


def test_an_unfinished_run_is_not_begun_anew_unasked_and_a_finished_one_is_left_alone(toy_corpus, tmp_path):
    given = arguments("mlm", toy_corpus, tmp_path / "out", "steps=2", "checkpoint_every=1")
    (tmp_path / "out.run" / "step-00000001").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"unfinished run .*step-00000001.*resume=true, or start anew with overwrite"):
        mlm.main(given)
    mlm.main([*given, "overwrite=true"])
    assert not (tmp_path / "out.run").exists()
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    for left in ("step-00000001", ".step-00000002", "best-00000001.safetensors"):  # by a kill at the last clean-up
        (tmp_path / "out.run" / left).mkdir(parents=True)
    with pytest.raises(Finished, match="is finished; nothing to do"):
        mlm.main([*given, "resume=true", "log_every=2"])
    assert not (tmp_path / "out.run").exists()
    with pytest.raises(ValueError, match=r"is finished, and of another run \(config.steps: 2 there, 3 here\)"):
        mlm.main([*given, "resume=true", "steps=3"])
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("content", "says"), [('{"identity": 7}', "identity is 7"), ("{}", "identity is missing"), ("", "")]
)
def test_a_damaged_record_is_named(toy_corpus, tmp_path, content, says):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training.json").write_text(content)
    with pytest.raises(ValueError, match=f"out/training.json.*{says}"):
        mlm.main(arguments("mlm", toy_corpus, tmp_path / "out", "resume=true"))


@pytest.mark.parametrize("entry", ["mlm", "opl"])
def test_a_second_run_into_the_same_output_is_refused_at_once(toy_corpus, tmp_path, entry):
    module = {"mlm": mlm, "opl": opl}[entry]
    given = arguments(entry, toy_corpus, tmp_path / "out", "steps=1")
    refused = []

    def second(*_, **__):
        process = launch(entry, [*given, "overwrite=true"])
        refused.append((process.communicate(timeout=200)[1].splitlines()[-1], process.returncode))
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_loop", second)
        with pytest.raises(InterruptedError):
            module.main(given)
    ((line, status),) = refused
    assert line.startswith(f"{entry}: another process writes to {tmp_path / 'out.run'}")
    assert status == 2
    module.main([*given, f"output_dir={tmp_path / 'out'}/"])
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not (tmp_path / "out.run").exists()


def test_a_run_that_replaces_a_finished_one_goes_on_too(toy_corpus, tmp_path):
    mlm.main(arguments("mlm", toy_corpus, tmp_path / "out", "steps=2"))
    given = arguments("mlm", toy_corpus, tmp_path / "out", "steps=4", "overwrite=true", "checkpoint_every=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlm, "finish", lambda *_: (_ for _ in ()).throw(InterruptedError))
        with pytest.raises(InterruptedError):
            mlm.main(given)
    assert (tmp_path / "out.run" / "step-00000003").is_dir()
    mlm.main([*given, "resume=true"])
    assert record(tmp_path / "out")["config"]["steps"] == 4
    assert [row["step"] for row in record(tmp_path / "out")["history"]] == [1, 2, 3, 4]


def test_processes_that_would_train_alone_and_absent_trackers_are_refused(toy_corpus, tmp_path, monkeypatch):
    given = arguments("mlm", toy_corpus, tmp_path / "out", "steps=1")
    with pytest.raises(ValueError, match="tracker=comet_ml is not installed"):
        mlm.main([*given, "tracker=comet_ml"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started and 1 would train together.*ACCELERATE_USE_CPU"):
        mlm.main(given)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_said_before_training(toy_corpus, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(mlm, "run_loop", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=r"output_dir=\S*file/out cannot be written .*name another"):
        mlm.main(arguments("mlm", toy_corpus, tmp_path / "file" / "out", "steps=1"))


def wait_for_checkpoint(process, folder):
    while not list(folder.glob("step-*")) and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_stopped_by_sigterm_goes_on(toy_corpus, tmp_path, processes):
    more = ["steps=400", "checkpoint_every=2", "resume=true", "log_every=100", "evaluation.every=0",
            "model.architecture.hidden_dropout_prob=0.1", "gradient_checkpointing=true"]  # fmt: skip
    given = arguments("mlm", toy_corpus, tmp_path / "out", *more)
    process = launch("mlm", given, processes)
    wait_for_checkpoint(process, tmp_path / "out.run")
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert "stopped by SIGTERM after step" in errors, errors
    assert "saved; go on with resume=true" in errors
    assert "Traceback" not in errors or processes > 1  # torchrun reports its workers' exit codes in its own words
    if processes == 1:
        assert process.returncode == 128 + signal.SIGTERM
    other = launch("mlm", given, 3 - processes)
    _, errors = other.communicate(timeout=100)
    assert f"processes: {processes} there, {3 - processes} here" in errors
    again = launch("mlm", given, processes)
    _, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    whole = launch("mlm", arguments("mlm", toy_corpus, tmp_path / "whole", *more), processes)
    assert whole.communicate(timeout=200) is not None
    assert whole.returncode == 0
    a, b = weights(tmp_path / "out"), weights(tmp_path / "whole")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert record(tmp_path / "out")["processes"] == processes


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["mlm", "opl"])
def test_a_compiled_run_trains_the_same_model(toy_corpus, tmp_path, entry):
    more = ["steps=3", "checkpoint_every=2", *(["evaluation.select=true"] if entry == "opl" else [])]
    plain = launch(entry, arguments(entry, toy_corpus, tmp_path / "plain", *more))
    plain.communicate(timeout=200)
    compiled = launch(entry, arguments(entry, toy_corpus, tmp_path / "compiled", *more, "compile=true"))
    _, errors = compiled.communicate(timeout=560)
    assert compiled.returncode == 0, errors
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-4) for name in a)
