"""Time and memory of whole models: ours, the original algorithm, and attention encoders, in one run.

    python experiments/speed/forward.py --arms ours:bfloat16,original:float32 --lengths 512,2048 --output forward.json

Arms take turns. At each length ours and the original are compared with the original algorithm in float64 before they
are timed. One that is wrong is recorded as red and not timed there; the others are, and the run ends with status 1.
Every length is written to the output as soon as it is finished.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import harness
import torch
from arms import NAMES, NOT_COMPARED, SHAPES, Arm, Gate, Runner, build, parse_arms, token_ids

from m2bert.terminal import run_command
from modeling_m2bert.m2bert_ops_filter import DEFAULT_LIMIT_BYTES, clear_filter_cache, filter_cache_bytes


class Bench:
    """All arms of one run."""

    def __init__(self, options):
        self.options, self.device, self.lengths = options, options.device, options.lengths
        self.training = options.mode == "training"
        arms = parse_arms(options.arms, options.dtype, self.device, self.lengths)
        self.runners, self.base = build(arms, self.device, max(self.lengths), options.layers)
        for runner in self.runners:
            runner.model.train(self.training)
        self.gate = None if self.base is None else Gate(self.base, self.device, self.training)
        self.skipped: list[str] = []
        self._last: dict[Runner, dict] = {}  # the record of an arm at the last length

    def batch_of(self, length: int) -> int:
        return (self.options.batch_tokens or length) // length

    def judge(self, ids) -> dict[Arm, dict]:
        """Compare the arms that share our weights with the reference, as Gate.check does."""
        if self.gate is None:
            return {}
        clear_filter_cache()
        verdicts = self.gate.check([runner for runner in self.runners if runner.arm.is_compared], ids)
        harness.free_memory(self.device)
        return verdicts

    def measure(self, length: int) -> list[dict]:
        """Return records of all arms at one length."""
        ids = token_ids(self.batch_of(length), length, self.device)
        verdicts, first, cache_bytes = self.judge(ids), {}, {}
        red = {runner: verdicts.get(runner.arm, {}).get("red") for runner in self.runners}
        red = {runner: text for runner, text in red.items() if text}
        for runner in self.runners:
            obstacle = None if runner in red else self._obstacle(runner, length, verdicts)
            if runner not in red and obstacle is None:
                try:
                    first[runner], cache_bytes[runner] = self._warm_up(runner, ids, verdicts.get(runner.arm))
                    continue
                except torch.OutOfMemoryError:
                    obstacle = "out of memory"
                except Exception as error:
                    red[runner] = harness.said(error)
                runner.model.zero_grad()
            if obstacle is not None:
                self._skip(runner, length, obstacle)
            harness.free_memory(self.device)
        if sum(runner.arm.is_ours for runner in first) > 1:
            for runner in self._rewarm(list(first), ids, cache_bytes):
                self._skip(runner, length, "the filter cache has no room; raise M2BERT_FILTER_CACHE_BYTES")
                del first[runner]
        peaks = {runner: self._peak_bytes(runner, ids) for runner in first}
        runs = {runner: lambda runner=runner: self._timed(runner, ids) for runner in first}
        rounds = self.options.rounds or harness.ROUNDS[self.device]
        turns, failed = harness.interleave(runs, rounds, self.options.budget_seconds, f"{length} tokens")
        red |= failed
        records = []
        for runner in (runner for runner in self.runners if runner in turns or runner in red):
            record = harness.make_record(
                self.device, turns.get(runner, []), arm=runner.arm.name, dtype=runner.arm.dtype, length=length,
                batch=ids.shape[0], tokens=ids.numel(), mode=self.options.mode, layers=runner.layers,
                shallow=self.options.layers is not None, parameters=runner.parameters,
                weight_bytes=runner.weight_bytes, peak_bytes=peaks.get(runner), cache_bytes=cache_bytes.get(runner),
            )  # fmt: skip
            record |= verdicts.get(runner.arm, NOT_COMPARED)
            records.append(record | {"first_seconds": first.get(runner), "red": red.get(runner)})
            if runner not in red:
                self._last[runner] = record
        harness.free_memory(self.device)
        return records

    def _skip(self, runner: Runner, length: int, obstacle: str) -> None:
        self.skipped.append(f"{runner.arm} at {length} tokens: {obstacle}")

    def _timed(self, runner: Runner, ids) -> float:
        """Return seconds of one call, after a check of its pooled output."""
        if runner.rebuilds_cache:
            clear_filter_cache()
            call(runner, ids, self.training)
        seconds, (_, pooled) = harness.timed(lambda: runner.call(ids, self.training), self.device)
        runner.model.zero_grad()
        if not torch.isfinite(pooled).all():
            raise ArithmeticError("a timed call returned values that are not finite")
        return seconds

    def _warm_up(self, runner: Runner, ids, verdict: dict | None) -> tuple[float, int | None]:
        """Return wall seconds of the first call at this length, and bytes of filter spectra that it left."""
        runner.rebuilds_cache = False
        if runner.arm.is_ours:
            clear_filter_cache()
        elif verdict is not None and self.device == "cpu":
            return verdict["first_seconds"], None  # the gate has called it, and nothing was kept or lost since
        runner.prepare(ids)
        seconds, _ = harness.timed(lambda: call(runner, ids, self.training), self.device, "perf_counter")
        cache_bytes = filter_cache_bytes() if runner.arm.is_ours and not self.training else None
        if self.device == "cuda":
            harness.warm_up(lambda: call(runner, ids, self.training), self.device)
        return verdict["first_seconds"] if verdict else seconds, cache_bytes

    def _rewarm(self, runners: list[Runner], ids, cache_bytes: dict) -> list[Runner]:
        """Fill every cache again, since each arm's first call cleared the others'. Where the arms' spectra do not fit
        side by side, each of our arms makes an untimed call before each timed one. Return the arms that cannot."""
        clear_filter_cache()
        ours = [runner for runner in runners if runner.arm.is_ours]
        # arms that share model and kernels share spectra
        kinds = {(id(runner.model), runner.kernels): cache_bytes[runner] or 0 for runner in ours}
        if sum(kinds.values()) > int(os.environ.get("M2BERT_FILTER_CACHE_BYTES") or DEFAULT_LIMIT_BYTES):
            for runner in ours:
                runner.rebuilds_cache = True
            return [runner for runner in ours if runner.arm.name == "ours-graph"]
        for runner in ours:
            runner.prepare(ids)
            call(runner, ids, self.training)
        return []

    def _peak_bytes(self, runner: Runner, ids) -> int | None:
        if self.device == "cuda" and runner.arm.name != "ours-graph":
            return harness.cuda_peak_bytes(lambda: call(runner, ids, self.training))
        if self.device == "cpu" and self.options.memory:
            arguments = (runner.arm, *ids.shape, self.training, max(self.lengths), self.options.layers)
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                return process.submit(peak_in_this_process, *arguments, torch.get_num_threads()).result()
        return None

    def _obstacle(self, runner: Runner, length: int, verdicts: dict[Arm, dict]) -> str | None:
        """Return why an arm is left out at a length, judged by its last one; None if it is measured. The time of
        attention over whole inputs grows at most with the square of the length."""
        if runner.arm.is_compared and runner.arm not in verdicts:
            return "out of memory"
        if (last := self._last.get(runner)) is None:
            return None
        growth = (length / last["length"]) ** (2 if runner.arm.name in SHAPES and not runner.chunk else 1)
        growth *= self.batch_of(length) / last["batch"]
        seconds, peak_bytes = growth * last["seconds"], growth * (last["peak_bytes"] or 0)
        if seconds > self.options.max_seconds:
            return f"expected {seconds:.3g} s a call, above --max-seconds={self.options.max_seconds:g}"
        if self.device == "cpu" and peak_bytes > harness.proc_bytes("meminfo", "MemAvailable"):
            return f"expected to need {peak_bytes / 1e9:.0f} GB, more than is free"
        return None


def call(runner: Runner, ids, training: bool) -> None:
    """Call an arm once; free the gradients of a training step."""
    runner.call(ids, training)
    runner.model.zero_grad()


def peak_in_this_process(arm: Arm, batch: int, length: int, training: bool, longest: int, layers: int | None,
                         threads: int) -> int:  # fmt: skip
    """Return bytes by which the resident set grows during one call of an arm on a CPU, beyond weights and cached filter
    spectra; in training with the gradients. The call before it loads libraries and, at this length, fills the filter
    cache; other arms make it at a short one."""
    torch.set_num_threads(threads)
    (runner,), _ = build([arm], "cpu", longest, layers)
    ids = token_ids(batch, length, "cpu")
    runner.model.train(training)
    call(runner, ids if arm.is_ours else ids[:, :128], training)
    return harness.resident_peak_bytes(lambda: call(runner, ids, training))


def main():
    parser = harness.make_parser(__doc__.split("\n")[0], epilog=f"arms: {', '.join(NAMES)}; each with :dtype if wanted")
    parser.add_argument("--arms", default="ours,original", help="comma-separated name or name:dtype")
    harness.add_turns(parser, lengths="512,2048", batch_tokens=None, dtype="float32")
    parser.add_argument("--layers", type=int, help="depth of every arm (quick looks), not the published")
    parser.add_argument("--budget-seconds", type=float, default=300, help="per length; after it three turns are enough")
    parser.add_argument("--max-seconds", type=float, default=600, help="leave an arm out where a call takes longer")
    parser.add_argument("--memory", action="store_true", help="on a CPU: peak memory too, each in a fresh process")
    bench = Bench(harness.parse(parser))
    try:
        harness.run_jobs([partial(bench.measure, length) for length in bench.lengths], bench.options.output)
    finally:
        for line in bench.skipped:
            print(f"left out: {line}")


if __name__ == "__main__":
    run_command("forward", main)
