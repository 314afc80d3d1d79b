"""Shared parts of the speed benchmarks: arguments, clocks, memory, records. Times are seconds, memory is bytes."""

import argparse
import ctypes
import gc
import json
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from m2bert.files import check_writable, write_atomically
from m2bert.terminal import Ended, one_line

ROOT = Path(__file__).parents[2]
ROUNDS = {"cpu": 5, "cuda": 50}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SUMMARY = ["op", "arm", "dtype", "mode", "length", "batch", "seconds", "runs", "first_seconds", "error", "peak_bytes"]
SUMMARY += ["red"]


class RedGate(Ended):
    """Raised at the end of a run in which something was wrong: those rows have no times, the others have."""

    exit_code = 1


def said(error: Exception) -> str:
    """Return what failed, on one line."""
    return one_line(f"{type(error).__name__}: {error}")


# --- arguments ---


def make_parser(description: str, **options) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False, **options)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; with one, CPU time is measured")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of records")
    return parser


def add_turns(parser: argparse.ArgumentParser, lengths: str, batch_tokens: int | None, dtype: str | None) -> None:
    """Add the arguments of benchmarks whose arms take turns at several lengths, with their defaults."""
    parser.add_argument("--lengths", type=token_lengths, default=lengths, help="tokens per row, comma-separated")
    parser.add_argument("--batch-tokens", type=int, default=batch_tokens, help="per batch, of as many rows as fit")
    parser.add_argument("--dtype", choices=DTYPES, default=dtype, help="where no arm names one")
    parser.add_argument("--mode", choices=("forward", "training"), default="forward", help="training: with backward")
    parser.add_argument("--rounds", type=int, help="turns per length (default: 5 on a CPU, 50 on a GPU)")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments with the device resolved, and set the number of CPU threads."""
    options = parser.parse_args()
    check_writable(options.output, "--output")
    if "batch_tokens" in options and (options.batch_tokens or options.lengths[-1]) < options.lengths[-1]:
        parser.error(f"--batch-tokens={options.batch_tokens} is below the longest of --lengths; raise it")
    torch.set_num_threads(options.threads)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def token_lengths(text: str) -> list[int]:
    """Parse comma-separated lengths in tokens; return them in increasing order."""
    return sorted({int(part) for part in text.split(",")})


# --- clocks ---


def clock_name(device: str) -> str:
    """Return CPU time of this process with one thread (a busy machine does not disturb it), wall time with several."""
    if device == "cuda":
        return "cuda_events"
    return "process_time" if torch.get_num_threads() == 1 else "perf_counter"


def timed(run: Callable[[], object], device: str, clock: str | None = None) -> tuple[float, object]:
    """Return seconds of one call by `clock_name` or another clock, and its result. First calls, which may compile in
    other processes, are timed by perf_counter. On a GPU the call starts and ends with an idle device."""
    synchronize(device)
    if (clock := clock or clock_name(device)) == "cuda_events":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = run()
        end.record()
        synchronize(device)
        return start.elapsed_time(end) / 1e3, result
    now = getattr(time, clock)
    start = now()
    result = run()
    synchronize(device)
    return now() - start, result


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def warm_up(run: Callable[[], object], device: str) -> None:
    """Call once on a CPU, ten times on a GPU; there three are enough for slow calls."""
    for _ in turns(10 if device == "cuda" else 1, budget_seconds=3):
        run()
        synchronize(device)


def turns(rounds: int, budget_seconds: float) -> Iterator[int]:
    """Yield at least three numbers of `rounds`, and no more once `budget_seconds` of wall time have passed."""
    start = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - start > budget_seconds:
            return
        yield done


def interleave(runs: dict, rounds: int, budget_seconds: float, title: str) -> tuple[dict, dict]:
    """Call {arm: function that returns the seconds it took} in turns, A B C A B C .., so that a drift of the machine
    affects all arms alike. An arm that fails has no further turn. Return {arm: seconds of every turn} of those that
    did not fail, and {arm: what was wrong} of those that did."""
    seconds, red = {arm: [] for arm in runs}, {}
    for _ in tqdm(turns(rounds, budget_seconds), title, rounds, leave=False):
        for arm, run in runs.items():
            if arm in seconds:
                try:
                    seconds[arm].append(run())
                except Exception as error:
                    red[arm] = said(error)
                    del seconds[arm]
    return seconds, red


# --- memory ---


def free_memory(device: str) -> None:
    gc.collect()
    if device == "cuda":
        with suppress(RuntimeError):  # a lost device: what was measured before is still written
            torch.cuda.empty_cache()


def cuda_peak_bytes(run: Callable[[], object]) -> int:
    """Return the most memory that a call held at once on the GPU beyond what was allocated before it."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_peak_bytes(run: Callable[[], object]) -> int:
    """Return the growth of this process's resident set during a call. Linux only; call it in a process made for it,
    without memory that earlier calls left with the allocator."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # free pages would otherwise serve the call unseen
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from the present size
    before = proc_bytes("self/status", "VmRSS")
    run()
    return proc_bytes("self/status", "VmHWM") - before


def proc_bytes(file: str, field: str) -> int:
    """Return a field of a file in /proc, such as MemAvailable of meminfo."""
    lines = dict(line.split(":", 1) for line in Path("/proc", file).read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


# --- records ---


def make_record(device: str, seconds: list[float], **fields) -> dict:
    """Return a record: `fields`, median and quantiles of the seconds, and where they were measured. An arm that is
    wrong says why in the field `red`, and has no seconds."""
    low, middle, high = np.quantile(seconds, [0.1, 0.5, 0.9]).tolist() if seconds else (None, None, None)
    times = {"clock": clock_name(device), "seconds": middle, "quantiles": [low, high], "runs": len(seconds)}
    return {"red": None} | fields | times | circumstances(device)


@cache
def circumstances(device: str) -> dict:
    """Return what every record says about where it was measured."""
    return {
        "device": device,
        "processor": torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """Return the processor's model, with its family where the name alone says little."""
    path = Path("/proc/cpuinfo")  # Linux only
    lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    family = f" (family {fields['cpu family']}, model {fields.get('model', '?')})" if "cpu family" in fields else ""
    return fields.get("model name", platform.processor() or platform.machine()) + family


def commit() -> str:
    """Return M2BERT_COMMIT if it is set, or the short hash of the source, `-dirty` with changes."""
    if known := os.environ.get("M2BERT_COMMIT"):
        return known
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run_jobs(jobs: Iterable[Callable[[], list[dict]]], output: Path) -> None:
    """Run jobs that return records; write all records so far after each, and print them at the end, however it ends. A
    job that fails loses its own records only. Raise RedGate at the end for these, and for records that are red."""
    records: list[dict] = []
    failed = 0
    try:
        for job in jobs:
            try:
                records += job()
            except Exception:
                failed += 1
                traceback.print_exc()
            text = json.dumps(records, indent=1) + "\n"
            write_atomically(output, lambda path, text=text: path.write_text(text))
    finally:
        table = pd.DataFrame(records, columns=SUMMARY).dropna(axis="columns", how="all")
        print(table.to_string(index=False, na_rep="-", float_format="{:.3g}".format))
    red = sum(record["red"] is not None for record in records)
    if red or failed:
        raise RedGate(f"{red} of {len(records)} records are red, {failed} jobs failed")
