"""The training loop on a linear model: steps, records, evaluation, prefetching, selection, stopping."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from m2bert.train.checkpoints import Checkpoints
from m2bert.train.loop import Stopped, peak_memory_bytes, run_loop


class Counter:
    """Batches that count themselves."""

    def __init__(self):
        self.handed_out = 0

    def next_batch(self):
        self.handed_out += 1
        return torch.full((1, 2), 1.0 + 0.1 * self.handed_out)

    def state(self):
        return {"handed_out": self.handed_out}

    def restore(self, state):
        self.handed_out = state["handed_out"]


class Run:
    """run_loop over a linear model with dropout on its input; `weights` before every step and at the end."""

    def __init__(self, output, *, steps=5, optimizer=torch.optim.AdamW, config=None, data=None, every=1, resume=False,
                 precision=None, dropout=0.0, clip_norm=1e9, log_every=1, evaluate_every=0, **parts):  # fmt: skip
        torch.manual_seed(0)
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=True, mixed_precision=precision)
        model = torch.nn.Sequential(torch.nn.Dropout(dropout), torch.nn.Linear(2, 1))
        optimizer = optimizer(model.parameters(), 0.1)
        self.schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.steps, self.parts, self.weights, self.batches = steps, parts, [], []
        self.settings = SimpleNamespace(
            output_dir=output, checkpoint_every=every, checkpoint_keep=2, resume=resume, log_every=log_every,
            optim=SimpleNamespace(clip_norm=clip_norm), evaluation=SimpleNamespace(every=evaluate_every),
            model_dump=lambda: config or {"lr": 0.1},
        )  # fmt: skip
        self.checkpoints = Checkpoints(self.accelerator, self.settings, data or {"print": "x"})
        self.checkpoints.folder.mkdir(exist_ok=True)

    def train_step(self, model, batch):
        self.weights.append(model[1].weight.detach().clone())
        self.batches.append(batch)
        loss = model(batch).sum()
        self.accelerator.backward(loss)
        return loss.detach(), {"tokens": 2, "pairs": 3}

    def before(self, step, act):
        """Call `act` before a step, counted from 1."""
        train_step = self.train_step
        self.train_step = lambda *given: (len(self.weights) == step - 1 and act(), train_step(*given))[1]

    def go(self):
        try:
            self.progress = run_loop(
                self.accelerator, self.model, self.optimizer, self.schedule, self.settings, self.steps,
                self.checkpoints, batches=Counter(), train_step=self.train_step, **self.parts,
            )  # fmt: skip
        finally:
            self.weights.append(self.model[1].weight.detach().clone())
        return self


@pytest.mark.parametrize(
    ("loss_factor", "gradient_factor", "named"),
    [(torch.nan, 1.0, r"loss nan, gradient norm \d"), (1.0, torch.inf, r"loss -?\d.*gradient norm inf")],
)
def test_a_loss_or_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path, loss_factor, gradient_factor, named):
    run = Run(tmp_path / "out")
    step = run.train_step

    def spoiled(model, batch):
        loss, counts = step(model, batch)
        if len(run.weights) == 3:
            loss = loss * loss_factor
            model[1].weight.grad *= gradient_factor
        return loss, counts

    run.train_step = spoiled
    with pytest.raises(FloatingPointError, match=f"step 3: {named}"):
        run.go()
    assert len(run.weights) == 4
    assert torch.equal(run.weights[-1], run.weights[-2])
    assert [path.name for path in run.checkpoints.complete()] == ["step-00000001", "step-00000002"]


def test_a_metric_that_is_not_finite_stops_before_anything_is_saved(tmp_path):
    run = Run(tmp_path / "out", evaluate=lambda _: {"score": torch.nan}, evaluate_every=2)
    with pytest.raises(FloatingPointError, match="score is nan"):
        run.go()
    assert [path.name for path in run.checkpoints.complete()] == ["step-00000001"]


def test_gradients_are_clipped_and_the_schedule_is_followed(tmp_path):
    run = Run(tmp_path / "out", clip_norm=0.5, optimizer=torch.optim.SGD).go()
    steps = [(b - a).norm().item() for a, b in zip(run.weights, run.weights[1:], strict=False)]
    norms = [batch.norm().item() for batch in run.batches]
    expected = [0.1 * (1 - i / 5) * 0.5 * norm / (norm**2 + 1) ** 0.5 for i, norm in enumerate(norms)]
    assert steps == pytest.approx(expected, rel=1e-4)
    history = run.progress.history
    assert [row["learning_rate"] for row in history] == pytest.approx([0.08, 0.06, 0.04, 0.02, 0.0])
    assert [row["gradient_norm"] for row in history] == pytest.approx([(norm**2 + 1) ** 0.5 for norm in norms])


def test_evaluations_come_when_they_are_due_whatever_is_logged(tmp_path):
    run = Run(tmp_path / "out", steps=7, log_every=4, evaluate=lambda model: {"score": 1.0}, evaluate_every=3).go()
    assert [(row["step"], "score" in row) for row in run.progress.history] == [(3, 1), (4, 0), (6, 1), (7, 1)]
    assert Run(tmp_path / "out", steps=0).go().progress.history == []


def test_counts_are_summed_batches_come_in_order_and_evaluation_has_no_dropout(tmp_path):
    modes = []
    run = Run(
        tmp_path / "out", log_every=2, evaluate=lambda model: modes.append(model.training) or {}, evaluate_every=2
    ).go()
    assert run.progress.totals == {"tokens": 10, "pairs": 15}
    assert [batch[0, 0].item() for batch in run.batches] == pytest.approx([1.1, 1.2, 1.3, 1.4, 1.5])
    assert modes == [False] * 3


@pytest.mark.parametrize(("scores", "best"), [([0.1, 0.5, 0.4, 0.5], 1), ([0.9, 0.5, 0.4, 0.3], 0)])
def test_the_best_weights_are_in_the_model_at_the_end(tmp_path, scores, best):
    """Also those before the first step."""
    found = iter(scores)
    run = Run(tmp_path / "out", steps=3, select="score", evaluate=lambda _: {"score": next(found)}, evaluate_every=1)
    run.go()
    assert run.progress.best == {"step": best, "score": scores[best]}
    assert torch.equal(run.weights[-1], run.weights[best])
    assert not torch.equal(run.weights[-1], run.weights[1 - best])


def test_sigterm_saves_and_stops_and_the_run_goes_on_bit_for_bit(tmp_path):
    whole = Run(tmp_path / "whole", steps=6, dropout=0.5, log_every=4).go()
    first = Run(tmp_path / "out", steps=6, dropout=0.5, log_every=4, every=0)
    first.before(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="after step 3 of 6, saved; go on with resume=true"):
        first.go()
    assert signal.getsignal(signal.SIGTERM) == previous
    second = Run(tmp_path / "out", steps=6, dropout=0.5, log_every=4, every=0, resume=True).go()
    for expected, got in zip(whole.weights[3:], second.weights, strict=True):
        assert torch.equal(expected, got)
    for expected, got in zip(whole.batches[3:], second.batches, strict=True):
        assert torch.equal(expected, got)
    assert second.progress.totals == whole.progress.totals
    for name in ("step", "loss", "gradient_norm", "learning_rate"):
        assert [row[name] for row in second.progress.history] == [row[name] for row in whole.progress.history]


def test_best_weights_survive_a_resume(tmp_path):
    scores = iter([0.1, 0.2, 0.9, 0.3, 0.3])
    settings = {"steps": 4, "select": "score", "evaluate": lambda _: {"score": next(scores)}, "evaluate_every": 1}
    first = Run(tmp_path / "out", **settings)
    first.before(4, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        first.go()
    second = Run(tmp_path / "out", resume=True, **settings).go()
    assert second.progress.best == {"step": 2, "score": 0.9}
    assert torch.equal(second.weights[-1], first.weights[2])


@pytest.mark.slow
def test_the_peak_of_memory_is_this_process_own():
    """Also of a process whose parent has held more."""
    code = "from m2bert.train.loop import peak_memory_bytes; print(peak_memory_bytes())"
    held = torch.ones(10**9, dtype=torch.uint8)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10**8 < int(done.stdout) < 10**9 < peak_memory_bytes()
    assert held.sum() == 10**9
