"""Runs that are killed, at any moment, and go on: the result is that of the run that nothing killed, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import tiny_runs
import torch
from tiny_runs import computed, record, same, weights

from m2bert.train.cli import BODIES

# Kills its own process: `step N` after N steps, `write N` when half of the optimizer of checkpoint N is written.
KILLER = """
import io, os, signal, sys
from pathlib import Path
import torch
from m2bert.train import {entry} as entry, loop

def die():
    os.kill(os.getpid(), signal.SIGKILL)

kind, number = sys.argv[1], int(sys.argv[2])
count, save, steps = loop.Log.count, torch.save, [0]

def counting(*args):
    count(*args)
    steps[0] += 1
    if kind == "step" and steps[0] == number:
        die()

def saving(what, path, *args, **kwargs):
    if kind == "write" and f".step-{{number:08d}}" in str(path):
        content = io.BytesIO()
        save(what, content)
        Path(path).write_bytes(content.getvalue()[: content.tell() // 2])
        die()
    save(what, path, *args, **kwargs)

loop.Log.count, torch.save = counting, saving
entry.main(sys.argv[3:])
"""


MORE = ["model.architecture.hidden_dropout_prob=0.1", "checkpoint_every=1", "resume=true", "evaluation.every=2",
        "log_every=2"]  # fmt: skip


def arguments(entry, corpus, output, steps=6):
    size = {"mlm": "data.accumulate=2", "opl": "data.batch_size=3", "align": "data.batch_tokens=100"}[entry]
    return tiny_runs.arguments(entry, corpus, output, *MORE, size, f"steps={steps}")


def start(entry, kind, number, given):
    code = KILLER.format(entry=BODIES[entry])
    command = [sys.executable, "-c", code, kind, str(number), *given]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)


def here(entry, given):
    """Run in this process, on one thread as the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tiny_runs.here(entry, given)
    finally:
        torch.set_num_threads(threads)


def finish(process) -> int:
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode


def assert_same_run(a, b):
    assert same(weights(a), weights(b))
    assert record(a)["totals"] == record(b)["totals"]
    assert computed(record(a)["history"]) == computed(record(b)["history"])


@pytest.mark.parametrize(
    ("entry", "kind", "number"),
    [
        pytest.param("mlm", "step", 3, marks=pytest.mark.slow),
        ("opl", "write", 4),
        pytest.param("align", "step", 3, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_between_steps_or_while_writing_ends_as_if_it_had_not_been(
    toy_corpus, tmp_path, entry, kind, number
):
    given = arguments(entry, toy_corpus, tmp_path / "killed")
    process = start(entry, kind, number, given)
    here(entry, arguments(entry, toy_corpus, tmp_path / "whole"))
    assert finish(process) == -signal.SIGKILL
    if kind == "write":
        assert (tmp_path / "killed.run" / ".step-00000004" / "optimizer.bin").is_file()
        assert not (tmp_path / "killed.run" / "step-00000004").exists()
    here(entry, given)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not (tmp_path / "killed.run").exists()


def checkpoints(folder):
    """The number of the newest complete checkpoint; 0 without one."""
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("step-*")), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("entry", BODIES)
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(toy_corpus, tmp_path, entry):
    steps, rng = 150, random.Random(0)
    assert finish(start(entry, "none", 0, arguments(entry, toy_corpus, tmp_path / "whole", steps))) == 0
    given, kills = arguments(entry, toy_corpus, tmp_path / "killed", steps), 0
    while not (tmp_path / "killed").exists():
        before = checkpoints(tmp_path / "killed.run")
        process = start(entry, "none", 0, given)
        while process.poll() is None and checkpoints(tmp_path / "killed.run") <= before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 1))
        if process.poll() is None:
            process.kill()
            kills += 1
        finish(process)
    assert kills >= 2
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
