"""The record of a run: learning curve, totals, configuration, data and versions."""

import math
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import ConfigDict

from m2bert.schema import Schema

from .distributed import gather_lists

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")
Number = int | float


class Progress(Schema):
    """Progress of a run. Goes through JSON, into every checkpoint.

    Attributes:
        history: one record for each time something was logged, as `Log.write` returns it.
        totals: sums of the counts of all steps and processes.
        losses, norms: since the last record, without the infinite norms that lower the scale of float16.
        seconds: of training so far, over all starts of the run.
        best: {"step": .., "score": ..} of the best weights so far.
        schedule: state of the learning rate's schedule; among accelerate's files it would be a pickle.
    """

    model_config = ConfigDict(frozen=False)

    step: int = 0
    history: list[dict[str, Number]] = []
    totals: dict[str, Number] = {}
    losses: list[Number] = []
    norms: list[Number] = []
    seconds: Number = 0.0
    best: dict[str, Number] | None = None
    schedule: dict[str, Any] = {}


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

        Args:
            waited_seconds: how long training has waited for data since the start.
            metrics: of the evaluation, if there was one. Its time does not count for the speed.

        Returns:
            step; loss and gradient_norm, means since the last record; learning_rate; tokens_per_second; waiting_share,
            the fraction of the time spent waiting for data; seconds; peak_memory_bytes; and the metrics.
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


def run_record(config: dict, data_fingerprint: str, world: int, progress: Progress) -> dict:
    """Return the record of a whole run: configuration, data, number of processes, versions, learning curve, totals."""
    return {
        "config": config,
        "data_fingerprint": data_fingerprint,
        "processes": world,
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "history": progress.history,
        "totals": progress.totals,
        "best": progress.best,
    }
