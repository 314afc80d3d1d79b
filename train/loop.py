"""The training loop: fetch, step, clip, log, evaluate, keep the best, save. Data, loss and schedule are passed in."""

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
    """The run was asked to stop (SIGTERM) and has saved itself."""

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
    """Make the next batch while the last one trains; `state` is the position after the batches that were used."""

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
    """Make the records of a run, and send them to the tracker."""

    def __init__(self, accelerator: Accelerator, progress: Progress, schedule):
        self.accelerator, self.progress, self.schedule = accelerator, progress, schedule
        self.counts: dict[str, float] = {}  # of this process, not yet in the totals
        self.tokens, self.waited_before = 0.0, 0.0  # of all processes, and of the fetching, up to the last record
        self.begin = time.perf_counter() - progress.seconds
        self.tick = time.perf_counter()

    def count(self, loss: float, norm: float, counts: dict[str, float]):
        """Add one step."""
        self.progress.losses.append(loss)
        if math.isfinite(norm):
            self.progress.norms.append(norm)
        for name, value in counts.items():
            self.counts[name] = self.counts.get(name, 0.0) + value

    def settle(self):
        """Bring totals, seconds and the schedule's state up to date: at every record, and before a checkpoint."""
        totals = self.progress.totals
        for counts in gather_lists([self.counts]):
            self.tokens += counts.get("tokens", 0.0)
            for name, value in counts.items():
                totals[name] = totals.get(name, 0.0) + value
        self.counts = {}
        self.progress.seconds = round(time.perf_counter() - self.begin, 2)
        self.progress.schedule = self.schedule.state_dict()

    def write(self, waited_seconds: float, metrics: dict[str, float]) -> dict[str, float]:
        """Add a record of everything since the last one to the history, and return it.

        loss and gradient_norm are means since the last record; waiting_share is the fraction of the time spent waiting
        for data, of which `waited_seconds` are so far. The time of an evaluation, whose metrics these are, does not
        count for the speed.
        """
        self.settle()
        elapsed = time.perf_counter() - self.tick - metrics.get("evaluation_seconds", 0.0)
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
        self.tokens, self.waited_before, self.tick = 0.0, waited_seconds, time.perf_counter()
        return record


def peak_memory_bytes() -> int:
    """Return the most memory this process has held: on its GPU, or of the whole process without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # of Linux, where getrusage's peak includes the parent's
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
        batches: one process's, endless: `next_batch()`, called from a thread, returns the batch of one step, `state()`
            the position after those returned so far, which goes through JSON, and `restore(state)` goes back there.
        train_step: (model, batch) -> (loss, counts), after forward and backward. The loss is the step's global mean,
            equal on all processes; counts of this process are summed over steps and processes and hold "tokens".
        evaluate: returns metrics of the model, every `evaluation.every` steps (0: never) and after the last step.
            Called on all processes, and equal on all.
        select: metric (larger is better) whose best weights are in the model at the end, those before the first step
            included.

    Returns:
        The progress; its `history` has one record per `log_every` steps and per evaluation.

    Raises:
        FloatingPointError: the loss, the gradient or a metric is not finite. The step is not taken and nothing saved.
        Stopped: after SIGTERM, with a checkpoint saved.
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
            metrics = evaluated(model, evaluate) if evaluating and evaluate else {}
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
            log.count(*update(accelerator, model, optimizer, schedule, clip_norm, progress.step + 1, loss), counts)
            progress.step += 1
            bar.update()
            last = progress.step == steps
            due = last or (every > 0 and progress.step % every == 0)
            if due or progress.step % settings.log_every == 0:
                record(evaluating=due)
            stopping = not last and sum_over_processes([float(stop.is_set())])[0] > 0  # of any process
            if not last and (stopping or (checkpoints.every and progress.step % checkpoints.every == 0)):
                log.settle()
                checkpoints.save(progress, prefetch.state)
            if stopping:
                raise Stopped(
                    f"stopped by SIGTERM after step {progress.step} of {steps}, saved; go on with resume=true"
                )
    if select:
        checkpoints.load_best(model, progress)
    return progress


def update(accelerator, model, optimizer, schedule, clip_norm: float, step: int, loss: Tensor) -> tuple[float, float]:
    """Clip, check and take the step; return the loss and the norm of the gradient before clipping."""
    norm = float(accelerator.clip_grad_norm_(model.parameters(), clip_norm))
    loss = loss.item()
    scaled = accelerator.scaler is not None  # float16: an infinite gradient only lowers the scale
    if not (math.isfinite(loss) and (scaled or math.isfinite(norm))):
        raise FloatingPointError(
            f"step {step}: loss {loss}, gradient norm {norm}; stopped before the update and without saving. "
            "Lower optim.lr, or look at the data of this step"
        )
    optimizer.step()
    if not accelerator.optimizer_step_was_skipped:
        schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm


def evaluated(model: torch.nn.Module, evaluate: Callable) -> dict[str, float]:
    """Return metrics of the model in evaluation mode, and the seconds they took."""
    start = time.perf_counter()
    model.eval()
    metrics = evaluate(model)
    model.train()
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"evaluation: {name} is {value}; stopped without saving. Lower optim.lr")
    return metrics | {"evaluation_seconds": round(time.perf_counter() - start, 2)}
