"""Clocks, interleaving and memory. Times are seconds, memory is bytes."""

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch


def clock_name(device: str) -> str:
    """CPU time of this process with one thread (a busy machine does not disturb it), wall time with several."""
    if device == "cuda":
        return "cuda_events"
    return "process_time" if torch.get_num_threads() == 1 else "perf_counter"


def timed(run: Callable[[], object], device: str) -> tuple[float, object]:
    """Seconds of one call, and what it returned; on a GPU the call starts and ends with an idle device."""
    if device == "cuda":
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, result
    clock = getattr(time, clock_name(device))
    start = clock()
    result = run()
    return clock() - start, result


def warm_up(run: Callable[[], object]) -> None:
    """Ten calls on a GPU; three are enough for slow ones."""
    start = time.perf_counter()
    for done in range(10):
        if done >= 3 and time.perf_counter() - start > 3:
            break
        run()
        torch.cuda.synchronize()


def wall_timed(run: Callable[[], object], device: str) -> tuple[float, object]:
    """Wall seconds of one call: for first calls, whose compilation may run in other processes."""
    start = time.perf_counter()
    result = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def interleave(
    runs: dict[str, Callable[[], float]], rounds: int, budget_seconds: float, advance: Callable[[], None]
) -> dict[str, list[float]]:
    """Call every run in turn, A B C A B C .., so that a drift of the machine meets all of them alike.

    Args:
        runs: by name, functions that return the seconds they took.
        rounds: turns to take; fewer, but at least three, once `budget_seconds` of wall time have passed.
        advance: called after every run.

    Returns:
        Seconds by name, one per round.
    """
    seconds = {name: [] for name in runs}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - start > budget_seconds:
            break
        for name, run in runs.items():
            seconds[name].append(run())
            advance()
    return seconds


def cuda_peak_bytes(run: Callable[[], object]) -> int:
    """Most memory that a call held at once on the GPU beyond what was allocated before it."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_peak_bytes(run: Callable[[], object]) -> int:
    """Growth of the resident set of this process during a call. Linux only; call it in a process made for it, since
    memory that earlier calls left with the allocator is counted as neither free nor used.

    Raises:
        OSError: the kernel does not offer /proc/self/clear_refs.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # free pages would otherwise serve the call unseen
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from the present size
    before = _proc_bytes("self/status", "VmRSS")
    run()
    return _proc_bytes("self/status", "VmHWM") - before


def available_bytes() -> int:
    """Memory of the machine that is free or can be freed. Linux only."""
    return _proc_bytes("meminfo", "MemAvailable")


def _proc_bytes(file: str, field: str) -> int:
    for line in Path("/proc", file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{file} has no {field}")
