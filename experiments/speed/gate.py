"""The correctness gate: what is timed must first be right.

The reference is the original algorithm in float64. Errors are relative: of all hidden states together, and of the worst
token, which shows a single wrong tile that the whole would hide; in training also of gradients.
"""

import torch
from arms import Arm, Runner
from harness import RedGate, wall_timed
from original import Original
from torch import Tensor

# Bounds on the worst token and on gradients: several times what a correct arm of that dtype shows.
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


class Gate:
    """Compares arms with the reference.

    Args:
        base: the float32 model whose weights all compared arms share.
    """

    def __init__(self, base, device: str, training: bool):
        model = Original(base).double().to(device)
        model.checkpointing = training  # float64 activations of all layers would not fit
        self.reference = Runner(Arm("original", "float64"), model)
        self.device, self.training = device, training

    def check(self, runners: list[Runner], ids: Tensor) -> dict[Arm, dict]:
        """Return what is seen of each arm on ids (B, L): `error` of all hidden states, `worst_error` of a token,
        `gradient_error` in training, and `first_seconds`, the wall time of the first call. Arms that the device has no
        memory for are left out.

        Raises:
            RedGate: an error is above the bound of the arm's dtype, or not finite.
        """
        hidden, gradients = self._call(self.reference, ids)[1:]
        verdicts = {}
        for runner in runners:
            try:
                seconds, values, found = self._call(runner, ids)
            except torch.OutOfMemoryError:
                runner.clear_gradients()
                continue
            finally:
                runner.call = runner.model  # without what was captured for these ids
            errors = {
                "error": relative_error(values, hidden),
                "worst_error": relative_error(values, hidden, dim=-1),
                "gradient_error": max(map(relative_error, found, gradients)) if self.training else None,
            }
            bound = BOUNDS[runner.arm.dtype]
            for name, error in errors.items():
                if error is not None and not error <= bound:
                    raise RedGate(f"{runner.arm} at {ids.shape[1]} tokens: {name} {error:.2e} is above {bound:.0e}")
            verdicts[runner.arm] = errors | {"first_seconds": seconds}
        return verdicts

    def _call(self, runner: Runner, ids: Tensor) -> tuple[float, Tensor, list[Tensor]]:
        """Return wall seconds of one call, hidden states, and gradients in training."""

        def first_call():
            runner.prepare(ids)
            return runner.step(ids) if self.training else runner.forward(ids)

        with torch.set_grad_enabled(self.training):
            seconds, (hidden, _) = wall_timed(first_call, self.device)
        gradients = runner.gradients() if self.training else []
        runner.clear_gradients()
        return seconds, hidden, gradients


def relative_error(values: Tensor, reference: Tensor, dim: int | None = None) -> float:
    """Return the norm of the difference over the norm of the reference, with `dim` the largest over vectors along that
    dimension. It is a huge number where a value is not finite: NaN would be lost in a maximum."""
    difference = values.to(reference.dtype) - reference
    return (difference.norm(dim=dim) / reference.norm(dim=dim)).max().nan_to_num(torch.inf).item()
