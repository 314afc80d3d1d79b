"""Checkpoints: whole or not at all, the newest that is whole, and only of the same run."""

import json
import resource
import signal

import pytest
import torch
from test_loop import Run

from m2bert_train.checkpoints import PROGRESS


def test_only_the_newest_stay(tmp_path):
    Run(tmp_path / "run", steps=6).go()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"lr": 0.2}}, "config.lr: 0.1 there, 0.2 here"),
        ({"data": {"print": "y"}}, "data.print: 'x' there, 'y' here"),
        ({"precision": "bf16"}, "precision: 'no' there, 'bf16' here"),
    ],
)
def test_another_run_is_refused_with_the_difference(tmp_path, change, message):
    Run(tmp_path / "run").go()
    with pytest.raises(ValueError, match=message):
        Run(tmp_path / "run", resume=True, **change).go()


def test_another_number_of_processes_is_refused(tmp_path):
    Run(tmp_path / "run").go()
    path = tmp_path / "run" / "step-00000004" / PROGRESS
    saved = json.loads(path.read_text())
    saved["identity"]["processes"] = 2
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="processes: 2 there, 1 here"):
        Run(tmp_path / "run", resume=True).go()


def test_what_does_not_matter_may_change(tmp_path):
    Run(tmp_path / "run", config={"lr": 0.1, "log_every": 1}).go()
    resumed = Run(tmp_path / "run", config={"lr": 0.1, "log_every": 2}, resume=True).go()
    assert len(resumed.batches) == 1


def test_a_half_written_checkpoint_is_not_found_and_goes(tmp_path):
    Run(tmp_path / "run").go()
    (tmp_path / "run" / "step-00000004" / PROGRESS).unlink()  # as if the disk had lost it
    (tmp_path / "run" / ".step-00000009").mkdir()
    resumed = Run(tmp_path / "run", resume=True).go()
    assert len(resumed.batches) == 2
    assert not (tmp_path / "run" / ".step-00000009").exists()


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path):
    assert len(Run(tmp_path / "run", resume=True).go().batches) == 5


def test_a_full_disk_leaves_earlier_checkpoints_as_they_were(tmp_path, capsys):  # capsys: no file behind the bar
    run = Run(tmp_path / "run")
    step = run.train_step

    def fill_the_disk(*args):
        if len(run.weights) == 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, limit[1]))  # bytes: no file can be larger
        return step(*args)

    run.train_step, limit = fill_the_disk, resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r"step-00000003 could not be written .*last complete one is .*step-00000002"):
            run.go()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step-00000001", "step-00000002"]
    resumed = Run(tmp_path / "run", resume=True).go()
    whole = Run(tmp_path / "whole").go()
    assert torch.equal(resumed.weights[-1], whole.weights[-1])


@pytest.mark.parametrize(("every", "keep", "name"), [(-1, 1, "checkpoint_every=-1"), (1, 0, "checkpoint_keep=0")])
def test_bad_settings_are_named(tmp_path, every, keep, name):
    from m2bert_train.checkpoints import Checkpoints

    accelerator = Run().accelerator
    with pytest.raises(ValueError, match=name):
        Checkpoints(accelerator, tmp_path, config={}, data={}, every=every, keep=keep, resume=False)
