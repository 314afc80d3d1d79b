"""Times arms at one length after another, and makes the records."""

import gc
from collections.abc import Callable

import memory
import torch
from arms import Arm, Runner, build, token_ids
from command import BadArgument, circumstances, quantiles
from gate import Gate, Verdict
from measure import available_bytes, clock_name, cuda_peak_bytes, interleave, timed, wall_timed, warm_up

from modeling_m2bert.m2bert_ops_filter import clear_filter_cache, filter_cache_bytes

NO_VERDICT = Verdict(None, None, None, None)
WHOLE_INPUT_EXPONENT = 2  # attention over whole inputs: time grows at most so with length


class Bench:
    """All arms of one run.

    Args:
        arms: in the order of their turns.
        device: `cpu` or `cuda`.
        mode: `forward`, or `training` (forward and backward).
        batch_of: rows per batch, by length.
        lengths: tokens per row.
        layers: depth of every arm; None: each its own.
        rounds, budget_seconds: turns per length, and the wall time after which three turns are enough.
        max_seconds: an arm expected to take longer than this for one call is left out at that length.
        measure_memory: on a CPU, measure peak memory in fresh processes too.
    """

    def __init__(self, arms: list[Arm], device: str, mode: str, batch_of: Callable[[int], int], lengths: list[int],
                 layers: int | None, rounds: int, budget_seconds: float, max_seconds: float,
                 measure_memory: bool):  # fmt: skip
        self.device, self.mode, self.layers = device, mode, layers
        self.batch_of, self.lengths = batch_of, lengths
        self.rounds, self.budget_seconds, self.max_seconds = rounds, budget_seconds, max_seconds
        self.measure_memory = measure_memory
        self.training = mode == "training"
        self.runners, self.base = build(arms, device, max(lengths), layers)
        for runner in self.runners:
            runner.model.train(self.training)
        self.skipped: list[str] = []
        self._last: dict[Runner, tuple[int, float, int | None]] = {}  # tokens per row, seconds, peak bytes

    def gate_tokens(self) -> int:
        """Tokens that the gate will have seen at all lengths: what a progress bar counts."""
        compared = sum(1 for runner in self.runners if runner.arm.is_compared)
        return compared * sum(length * self.batch_of(length) for length in self.lengths)

    def tokens_at(self, length: int) -> int:
        """Tokens that all turns at a length will have seen, at most."""
        return len(self.runners) * self.rounds * length * self.batch_of(length)

    def gate(self, advance: Callable[[int], None]) -> dict[int, dict[str, Verdict]]:
        """Verdicts of the arms that share our weights, by length and arm. Raises gate.RedGate."""
        if self.base is None:
            return {}
        gate = Gate(self.base, self.device, self.training)
        compared = [runner for runner in self.runners if runner.arm.is_compared]
        verdicts = {}
        for length in self.lengths:
            clear_filter_cache()
            ids = token_ids(self.batch_of(length), length, self.device)
            verdicts[length] = gate.check(compared, ids, lambda ids=ids: advance(ids.numel()))
            self._free()
        return verdicts

    def measure(self, length: int, verdicts: dict[str, Verdict], advance: Callable[[int], None]) -> list[dict]:
        """Records of all arms at one length."""
        ids = token_ids(self.batch_of(length), length, self.device)
        first, cache_bytes = {}, {}
        for runner in self.runners:
            obstacle = self._obstacle(runner, length, verdicts)
            if obstacle is None:
                try:
                    first[runner], cache_bytes[runner] = self._warm_up(runner, ids, verdicts.get(str(runner.arm)))
                    continue
                except torch.OutOfMemoryError:
                    runner.clear_gradients()
                    obstacle = "out of memory"
            self.skipped.append(f"{runner.arm} at {length} tokens: {obstacle}")
            self._free()
        runners = list(first)
        if sum(runner.arm.is_ours for runner in runners) > 1:
            self._rewarm(runners, ids, cache_bytes)
        peaks = {runner: self._peak_bytes(runner, ids) for runner in runners}
        runs = {runner: lambda runner=runner: self._timed(runner, ids) for runner in runners}
        seconds = interleave(runs, self.rounds, self.budget_seconds, lambda: advance(ids.numel()))
        records = []
        for runner, values in seconds.items():
            middle, spread = quantiles(values)
            self._last[runner] = length, middle, peaks[runner]
            verdict = verdicts.get(str(runner.arm), NO_VERDICT)
            records.append(
                self._circumstances(runner, ids)
                | {"clock": clock_name(self.device), "seconds": middle, "quantiles": spread, "runs": len(values)}
                | {"first_seconds": first[runner], "error": verdict.error, "worst_error": verdict.worst_error}
                | {"gradient_error": verdict.gradient_error}
                | {"peak_bytes": peaks[runner], "cache_bytes": cache_bytes[runner]}
            )
        self._free()
        return records

    def _circumstances(self, runner: Runner, ids) -> dict:
        return {
            "arm": runner.arm.name,
            "dtype": runner.arm.dtype,
            "length": ids.shape[1],
            "batch": ids.shape[0],
            "tokens": ids.numel(),
            "mode": self.mode,
            "layers": runner.layers,
            "shallow": self.layers is not None,
            "parameters": runner.parameters,
            "weight_bytes": runner.weight_bytes,
        } | circumstances(self.device)

    def _run(self, runner: Runner, ids):
        """One call; the gradients of a training step are freed."""
        if self.training:
            result = runner.step(ids)
            runner.clear_gradients()
            return result
        with torch.no_grad():
            return runner.forward(ids)

    def _timed(self, runner: Runner, ids) -> float:
        """Seconds of one call, whose pooled output is checked."""
        if runner.rebuilds_cache:
            self._run(runner, ids)
        grad = torch.enable_grad() if self.training else torch.no_grad()
        with grad:
            seconds, (_, pooled) = timed(lambda: (runner.step if self.training else runner.forward)(ids), self.device)
        runner.clear_gradients()
        if not torch.isfinite(pooled).all():
            raise FloatingPointError(f"{runner.arm} at {ids.shape[1]} tokens gave values that are not finite")
        return seconds

    def _warm_up(self, runner: Runner, ids, verdict: Verdict | None) -> tuple[float, int | None]:
        """Wall seconds of the first call at this length, and bytes of filter spectra that it left."""
        runner.rebuilds_cache = False
        if runner.arm.is_ours:
            clear_filter_cache()
        elif verdict is not None and self.device == "cpu":
            return verdict.first_seconds, None  # the gate has called it, and nothing was kept or lost since
        runner.prepare(ids)
        seconds, _ = wall_timed(lambda: self._run(runner, ids), self.device)
        cache_bytes = filter_cache_bytes() if runner.arm.is_ours and not self.training else None
        if self.device == "cuda":
            warm_up(lambda: self._run(runner, ids))
        return seconds if verdict is None else verdict.first_seconds, cache_bytes

    def _rewarm(self, runners: list[Runner], ids, cache_bytes: dict) -> None:
        """Every cache again, since each arm's first call cleared the others'. Where the arms' spectra do not fit side
        by side, each of our arms makes an untimed call before each timed one."""
        clear_filter_cache()
        ours = [runner for runner in runners if runner.arm.is_ours]
        for runner in ours:
            runner.prepare(ids)
            self._run(runner, ids)
        if self.training:
            return
        kinds = {}  # arms that share model and kernels share spectra
        for runner in ours:
            kinds[id(runner.model), runner.kernels] = cache_bytes[runner]
        crowded = filter_cache_bytes() < sum(kinds.values())
        for runner in ours:
            runner.rebuilds_cache = crowded
            if crowded and runner.arm.name == "ours-graph":
                raise BadArgument(
                    f"--arms: the filter cache holds the spectra of {runner.arm} only until another arm runs; "
                    "raise M2BERT_FILTER_CACHE_BYTES"
                )

    def _peak_bytes(self, runner: Runner, ids) -> int | None:
        if self.device == "cuda":
            return None if runner.arm.name == "ours-graph" else cuda_peak_bytes(lambda: self._run(runner, ids))
        if self.measure_memory:
            return memory.in_fresh_process(runner.arm, *ids.shape, self.mode, max(self.lengths), self.layers)
        return None

    def _obstacle(self, runner: Runner, length: int, verdicts: dict[str, Verdict]) -> str | None:
        """Why an arm is left out at a length, judged by its last one; None where it is not."""
        if runner.arm.is_compared and str(runner.arm) not in verdicts:
            return "out of memory"
        if runner not in self._last:
            return None
        last_length, seconds, peak_bytes = self._last[runner]
        growth = (length / last_length) ** (WHOLE_INPUT_EXPONENT if runner.arm.is_quadratic else 1)
        growth *= self.batch_of(length) / self.batch_of(last_length)
        if seconds * growth > self.max_seconds:
            return f"expected {seconds * growth:.3g} s a call, above --max-seconds={self.max_seconds:g}"
        if self.device == "cpu" and peak_bytes is not None and peak_bytes * growth > available_bytes():
            return f"expected to need {peak_bytes * growth / 1e9:.0f} GB, more than is free"
        return None

    def _free(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
