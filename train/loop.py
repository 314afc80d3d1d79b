"""The training loop: it makes steps, logs, evaluates and saves. Data, loss and schedule are passed in."""

import logging
import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from m2bert.terminal import Ended

from .checkpoints import Checkpoints, Progress
from .distributed import gather_lists, sum_over_processes

logger = logging.getLogger(__name__)


class Stopped(Ended):
    """SIGTERM asked the run to stop, and the run has saved a checkpoint."""

    exit_code = 128 + signal.SIGTERM


@contextmanager
def sigterm_noted() -> Iterator[threading.Event]:
    """Yield an event that is set by SIGTERM, which schedulers send before they take a machine away."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, previous)


class Prefetch:
    """Make the next batch in a thread during the current step.

    Attributes:
        state: the position in the data after the batches that `next_batch` has returned.
        waited_seconds: how long `next_batch` has waited for the thread so far.
    """

    def __init__(self, batches):
        self.batches, self.state, self.waited_seconds = batches, batches.state(), 0.0
        self.thread = ThreadPoolExecutor(1)
        self.ahead = self.thread.submit(self._make)

    def _make(self):
        return self.batches.next_batch(), self.batches.state()

    def next_batch(self):
        start = time.perf_counter()
        batch, self.state = self.ahead.result()
        self.waited_seconds += time.perf_counter() - start
        self.ahead = self.thread.submit(self._make)
        return batch

    def close(self):
        self.thread.shutdown(wait=True, cancel_futures=True)


class Log:
    """Collect losses and counts of the steps, write them as records into the history, and send these to the tracker."""

    def __init__(self, accelerator: Accelerator, progress: Progress, schedule):
        self.accelerator, self.progress, self.schedule = accelerator, progress, schedule
        self.counts: dict[str, float] = {}  # of this process; not yet part of progress.totals
        self.tokens = 0.0  # of all processes, since the last record
        self.waited_before = 0.0  # waited_seconds at the last record
        self.run_began = time.perf_counter() - progress.seconds  # shifted by the time of the run's earlier starts
        self.last_record = time.perf_counter()  # when it was written

    def count(self, loss: float, norm: float, counts: dict[str, float]):
        """Add one step."""
        self.progress.losses.append(loss)
        if math.isfinite(norm):
            self.progress.norms.append(norm)
        for name, value in counts.items():
            self.counts[name] = self.counts.get(name, 0.0) + value

    def update_progress(self):
        """Bring totals, seconds and the schedule's state up to date, for every record and every checkpoint."""
        totals = self.progress.totals
        for counts in gather_lists([self.counts]):
            self.tokens += counts.get("tokens", 0.0)
            for name, value in counts.items():
                totals[name] = totals.get(name, 0.0) + value
        self.counts = {}
        self.progress.seconds = round(time.perf_counter() - self.run_began, 2)
        self.progress.schedule = self.schedule.state_dict()

    def write(self, waited_seconds: float, metrics: dict[str, float]) -> dict[str, float]:
        """Add a record of everything since the last one to the history, and return it.

        The record's loss and gradient_norm are means since the last record. Its waiting_share is the fraction of the
        time that was spent waiting for data. The time of an evaluation counts for neither speed nor waiting_share.

        Args:
            waited_seconds: time spent waiting for data, since this process began.
            metrics: of the evaluation that has just run; {} without one.
        """
        self.update_progress()
        elapsed = time.perf_counter() - self.last_record - metrics.get("evaluation_seconds", 0.0)
        losses, norms = self.progress.losses, self.progress.norms
        record = {"step": self.progress.step}
        if losses:
            record |= {
                "loss": sum(losses) / len(losses),
                "gradient_norm": sum(norms) / max(len(norms), 1),
                "learning_rate": self.schedule.get_last_lr()[-1],
                "tokens_per_second": round(self.tokens / elapsed),
                "waiting_share": round((waited_seconds - self.waited_before) / elapsed, 4),
            }
        record |= {"seconds": self.progress.seconds, "peak_memory_bytes": peak_memory_bytes(), **metrics}
        self.progress.history.append(record)
        self.progress.losses, self.progress.norms = [], []
        self.accelerator.log({name: value for name, value in record.items() if name != "step"}, step=record["step"])
        self.tokens, self.waited_before, self.last_record = 0.0, waited_seconds, time.perf_counter()
        return record


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held: GPU memory if there is a GPU, else main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # only Linux has it; getrusage's peak there includes that of the parent process
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_loop(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule,
    settings,
    steps: int,
    checkpoints: Checkpoints,
    *,
    batches,
    train_step: Callable[[torch.nn.Module, Any], tuple[Tensor, dict[str, float]]],
    evaluate: Callable[[torch.nn.Module], dict[str, float]] | None = None,
    select: str | None = None,
) -> Progress:
    """Train for `steps` steps, from the last checkpoint where there is one to resume from.

    Args:
        settings: `RunSettings`.
        batches: endless batches of this process. `next_batch()` returns the batch of one step; a thread calls it.
            `state()` returns the position after the batches returned so far, as JSON can hold it. `restore(state)`
            goes back to that position.
        train_step: runs forward and backward, (model, batch) -> (loss, counts). The loss is that of the whole step,
            equal on all processes. The counts are this process's and hold "tokens"; the loop sums them over steps and
            processes.
        evaluate: returns metrics of the model. It is called after every `evaluation.every` steps (0: never) and after
            the last step, on all processes, and returns the same on all.
        select: name of a metric of which larger is better. At the end the model gets the weights with the best value
            of it. The weights before the first step compete, too.

    Returns:
        The progress; its `history` has one record per `log_every` steps and per evaluation.

    Raises:
        FloatingPointError: the loss, the gradient or a metric is not finite. The step is not taken, nothing is saved.
        Stopped: SIGTERM came. A checkpoint is saved.
    """
    progress = checkpoints.load(batches) or Progress()
    if progress.schedule:
        schedule.load_state_dict(dict(progress.schedule))
    every, clip_norm = settings.evaluation.every, settings.optim.clip_norm
    log = Log(accelerator, progress, schedule)
    with (
        sigterm_noted() as stop,
        closing(Prefetch(batches)) as prefetch,
        tqdm(desc="train", unit="step", initial=progress.step, total=steps,
             disable=not accelerator.is_main_process) as bar,
    ):  # fmt: skip

        def record(evaluating: bool):
            metrics = run_evaluation(model, evaluate) if evaluating and evaluate else {}
            written = log.write(prefetch.waited_seconds, metrics)
            if metrics:
                with logging_redirect_tqdm():
                    scores = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
                    logger.info("step %d of %d: %s", progress.step, steps, scores)
            bar.set_postfix({name: f"{written[name]:.5g}" for name in ("loss", "tokens_per_second") if name in written})
            if select and metrics:
                checkpoints.keep_best(model, progress, metrics[select])

        if select and progress.step == 0:
            record(evaluating=True)
        model.train()
        while progress.step < steps:
            loss, counts = train_step(model, prefetch.next_batch())
            log.count(*take_step(accelerator, model, optimizer, schedule, clip_norm, progress.step + 1, loss), counts)
            progress.step += 1
            bar.update()
            last = progress.step == steps
            evaluating = last or (every > 0 and progress.step % every == 0)
            if evaluating or progress.step % settings.log_every == 0:
                record(evaluating)
            stopping = not last and sum_over_processes([float(stop.is_set())])[0] > 0  # if any process was asked to
            if not last and (stopping or (checkpoints.every and progress.step % checkpoints.every == 0)):
                log.update_progress()
                checkpoints.save(progress, prefetch.state)
            if stopping:
                raise Stopped(
                    f"stopped by SIGTERM after step {progress.step} of {steps}, saved; go on with resume=true"
                )
    if select:
        checkpoints.load_best(model, progress)
    return progress


def take_step(
    accelerator, model, optimizer, schedule, clip_norm: float, step: int, loss: Tensor
) -> tuple[float, float]:
    """Clip the gradients, check that all is finite, and take the optimizer's step number `step`.

    Returns:
        The loss, and the norm of the gradient before clipping.
    """
    norm = float(accelerator.clip_grad_norm_(model.parameters(), clip_norm))
    loss = loss.item()
    loss_is_scaled = accelerator.scaler is not None  # in float16; there an infinite gradient only lowers the scale
    if not (math.isfinite(loss) and (loss_is_scaled or math.isfinite(norm))):
        raise FloatingPointError(
            f"step {step}: loss {loss}, gradient norm {norm}; stopped before the update and without saving. "
            "Lower optim.lr, or look at the data of this step"
        )
    optimizer.step()
    if not accelerator.optimizer_step_was_skipped:
        schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm


def run_evaluation(model: torch.nn.Module, evaluate: Callable) -> dict[str, float]:
    """Return the metrics of the model in evaluation mode, and as "evaluation_seconds" the time they took."""
    start = time.perf_counter()
    model.eval()
    metrics = evaluate(model)
    model.train()
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"evaluation: {name} is {value}; stopped without saving. Lower optim.lr")
    return metrics | {"evaluation_seconds": round(time.perf_counter() - start, 2)}
