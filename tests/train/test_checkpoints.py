"""Checkpoints: whole or not at all, the newest that is whole, and only of the same run."""

import resource
import shutil
import signal

import pytest
import torch
from test_loop import Run

from m2bert.train.checkpoints import PROGRESS, remove_all
from m2bert.train.verified_files import read_sealed, write_sealed


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"config": {"lr": 0.2}}, "config.lr: 0.1 there, 0.2 here"),
        ({"data": {"print": "y"}}, "data.print: 'x' there, 'y' here"),
        ({"precision": "bf16"}, "precision: 'no' there, 'bf16' here"),
        ("processes", "processes: 2 there, 1 here"),
    ],
)
def test_another_run_is_refused_with_the_difference(tmp_path, change, difference):
    Run(tmp_path / "out").go()
    if change == "processes":
        path, change = tmp_path / "out.run" / "step-00000004" / PROGRESS, {}
        saved = read_sealed(path)
        saved["identity"]["processes"] = 2
        write_sealed(path, saved)
    with pytest.raises(ValueError, match=difference):
        Run(tmp_path / "out", resume=True, **change).go()


FILES = ["model.safetensors", "optimizer.bin", "random_states_0.pkl", PROGRESS]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["one bit", "cut", "empty", "gone", "another"])
def test_a_damaged_checkpoint_is_refused_and_the_older_one_goes_on(tmp_path, name, how):
    whole = Run(tmp_path / "out", dropout=0.5).go()
    newest = tmp_path / "out.run" / "step-00000004"
    damage(newest / name, how)
    with pytest.raises(ValueError, match=rf"step-00000004/{name} .*step-00000003 is whole.* \S*step-00000004$"):
        Run(tmp_path / "out", dropout=0.5, resume=True).go()
    shutil.rmtree(newest)
    resumed = Run(tmp_path / "out", dropout=0.5, resume=True).go()
    assert len(resumed.batches) == 2
    assert torch.equal(resumed.weights[-1], whole.weights[-1])


def damage(path, how):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    changed = {"one bit": content, "cut": content[: len(content) // 2], "empty": b"", "another": b"7"}
    path.unlink() if how == "gone" else path.write_bytes(changed[how])


def test_without_a_whole_checkpoint_the_way_out_is_to_start_anew(tmp_path):
    Run(tmp_path / "out").go()
    path = tmp_path / "out.run" / "step-00000004" / PROGRESS
    write_sealed(path, read_sealed(path) | {"generators": 1})
    with pytest.raises(ValueError, match=f"{PROGRESS}: generators is 1"):
        Run(tmp_path / "out", resume=True).go()
    for checkpoint in (tmp_path / "out.run").glob("step-*"):
        (checkpoint / "optimizer.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="no older checkpoint is whole.*overwrite=true resume=false"):
        Run(tmp_path / "out", resume=True).go()


@pytest.mark.parametrize("how", ["one bit", "gone"])
def test_damaged_best_weights_are_refused_before_training_goes_on_and_at_its_end(tmp_path, how):
    scores = iter([0.1, 0.9, *[0.2] * 9])
    settings = {"select": "score", "evaluate": lambda _: {"score": next(scores)}, "evaluate_every": 1}
    first = Run(tmp_path / "out", steps=4, **settings)
    best = tmp_path / "out.run" / "best-00000001.safetensors"
    first.before(4, lambda: damage(best, how))
    with pytest.raises(ValueError, match=best.name):
        first.go()
    resumed = Run(tmp_path / "out", steps=4, resume=True, **settings)
    with pytest.raises(ValueError, match=best.name):
        resumed.go()
    assert not resumed.batches


def test_a_random_generator_that_is_not_restored_is_noticed(tmp_path, monkeypatch):
    Run(tmp_path / "out", dropout=0.5).go()
    monkeypatch.setattr("accelerate.checkpointing.random.setstate", lambda _: 1 / 0)  # which accelerate swallows
    with pytest.raises(ValueError, match="random generators of .*step-00000004 could not be restored"):
        Run(tmp_path / "out", dropout=0.5, resume=True).go()


def test_a_damaged_older_checkpoint_does_not_stop_a_run(tmp_path, caplog):
    run = Run(tmp_path / "out")
    older = tmp_path / "out.run" / "step-00000003" / PROGRESS
    run.before(4, lambda: damage(older, "empty"))
    assert len(run.go().batches) == 5
    assert str(older) in caplog.text


def test_what_is_not_a_checkpoints_stays(tmp_path):
    for name in ("step-by-step", ".git", "best-of"):
        (tmp_path / "out.run" / name).mkdir(parents=True)
    Run(tmp_path / "out", resume=True).go()
    remove_all(tmp_path / "out.run")
    assert sorted(path.name for path in (tmp_path / "out.run").iterdir()) == [".git", "best-of", "step-by-step"]


def test_what_does_not_matter_may_change_and_what_is_half_written_or_deleted_is_not_found_and_goes(tmp_path):
    Run(tmp_path / "out", config={"lr": 0.1, "log_every": 1}).go()
    (tmp_path / "out.run" / "step-00000004").rename(tmp_path / "out.run" / ".step-00000004")
    (tmp_path / "out.run" / ".best-00000009.safetensors").touch()
    resumed = Run(tmp_path / "out", config={"lr": 0.1, "log_every": 2}, resume=True).go()
    assert len(resumed.batches) == 2
    assert not list((tmp_path / "out.run").glob(".*"))


def test_resume_without_a_checkpoint_and_a_start_anew_begin_at_the_beginning(tmp_path):
    assert len(Run(tmp_path / "out", resume=True).go().batches) == 5
    assert len(Run(tmp_path / "out", steps=3).go().batches) == 3
    assert sorted(path.name for path in (tmp_path / "out.run").iterdir()) == ["step-00000001", "step-00000002"]


def test_a_full_disk_leaves_earlier_checkpoints_as_they_were(tmp_path, capsys):  # capsys: no file behind the bar
    run = Run(tmp_path / "out")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limit[1]))  # bytes: no file can be larger

    run.before(3, fill_the_disk)
    try:
        with pytest.raises(OSError, match=r"step-00000003 could not be written .*last complete one is .*step-00000002"):
            run.go()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(path.name for path in (tmp_path / "out.run").iterdir()) == ["step-00000001", "step-00000002"]
    resumed = Run(tmp_path / "out", resume=True).go()
    whole = Run(tmp_path / "whole").go()
    assert torch.equal(resumed.weights[-1], whole.weights[-1])
