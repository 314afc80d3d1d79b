"""The correctness gate: what is timed must first be right.

The reference is the original algorithm in float64. Errors are relative: of all hidden states together, and of the worst
token, which shows a single wrong tile that the whole would hide; in training also of gradients.
"""

from dataclasses import dataclass

import torch
from arms import Arm, Runner
from measure import wall_timed
from original import Original
from torch import Tensor

# Bounds on the worst token and on gradients: several times what a correct arm of that dtype shows.
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


class RedGate(Exception):
    """An arm is wrong: nothing may be timed."""


@dataclass
class Verdict:
    """What the gate saw of one arm at one length; None where it did not look.

    Attributes:
        error, worst_error: relative error of all hidden states, and of the worst token.
        gradient_error: largest relative error of a gradient, in training.
        first_seconds: wall time of the arm's first call at this length: filters, spectra, compilation.
    """

    error: float | None
    worst_error: float | None
    gradient_error: float | None
    first_seconds: float | None


class Gate:
    """Compares arms with the reference.

    Args:
        base: the float32 model whose weights all compared arms share.
    """

    def __init__(self, base, device: str, training: bool):
        model = Original(base).double().to(device)
        model.checkpointing = training  # float64 activations of all layers would not fit
        self.reference = Runner(Arm("original", "float64"), model)
        self.device = device
        self.training = training

    def check(self, runners: list[Runner], ids: Tensor, advance) -> dict[str, Verdict]:
        """Verdict by arm on ids (B, L), without those that the device has no memory for; `advance` is called once per
        arm.

        Raises:
            RedGate: an error is above the bound of the arm's dtype, or not finite.
        """
        hidden, gradients = self._call(self.reference, ids)[1:]
        verdicts = {}
        for runner in runners:
            advance()
            try:
                seconds, values, found = self._call(runner, ids)
            except torch.OutOfMemoryError:
                runner.clear_gradients()
                continue
            finally:
                runner.release()
            verdict = Verdict(
                error=relative_error(values, hidden),
                worst_error=worst_token_error(values, hidden),
                gradient_error=max(map(relative_error, found, gradients)) if self.training else None,
                first_seconds=seconds,
            )
            worst = max(verdict.worst_error, verdict.gradient_error or 0.0)
            bound = BOUNDS[runner.arm.dtype]
            if not worst <= bound:
                raise RedGate(f"{runner.arm} at {ids.shape[1]} tokens: error {worst:.2e} is above {bound:.0e}")
            verdicts[str(runner.arm)] = verdict
        return verdicts

    def _call(self, runner: Runner, ids: Tensor) -> tuple[float, Tensor, list[Tensor]]:
        """Wall seconds of one call, hidden states, and gradients in training."""

        def first_call():
            runner.prepare(ids)
            return runner.step(ids) if self.training else runner.forward(ids)

        with torch.set_grad_enabled(self.training):
            seconds, (hidden, _) = wall_timed(first_call, self.device)
        gradients = runner.gradients() if self.training else []
        runner.clear_gradients()
        return seconds, hidden, gradients


def relative_error(values: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference; infinite where values are not finite."""
    difference = values.to(reference.dtype) - reference
    error = (difference.norm() / reference.norm()).item()
    return error if error == error else float("inf")


def worst_token_error(hidden: Tensor, reference: Tensor) -> float:
    """Largest relative error of one token's vector: (B, L, H) against (B, L, H)."""
    difference = (hidden.to(reference.dtype) - reference).norm(dim=-1)
    error = (difference / reference.norm(dim=-1)).max().item()
    return error if error == error else float("inf")
