"""Peak memory of one call on a CPU, measured in a process of its own: one arm, one length.

Run by bench.py as `python experiments/speed/memory.py ARM ...`; prints the bytes by which the resident set grew during the
second call, the first having loaded libraries and filled the filter cache.
"""

import subprocess
import sys

import torch
from arms import Arm, build, token_ids
from measure import resident_peak_bytes


def in_fresh_process(arm: Arm, batch: int, length: int, mode: str, longest: int, layers: int | None) -> int:
    """Bytes by which the resident set grows during one call of `arm` on (batch, length) ids, beyond weights and cached
    filter spectra; in training with the gradients.

    Raises:
        RuntimeError: the process failed.
    """
    arguments = [arm.name, arm.dtype, batch, length, mode, longest, layers or 0, torch.get_num_threads()]
    command = [sys.executable, __file__, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"measuring the memory of {arm} failed: {result.stderr.strip().splitlines()[-1]}")
    return int(result.stdout)


def main(name: str, dtype: str, batch: str, length: str, mode: str, longest: str, layers: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    (runner,), _ = build([Arm(name, dtype)], "cpu", int(longest), int(layers) or None)
    ids = token_ids(int(batch), int(length), "cpu")
    training = mode == "training"
    runner.model.train(training)

    def call():
        with torch.set_grad_enabled(training):
            (runner.step if training else runner.forward)(ids)
        if training:
            runner.clear_gradients()

    call()
    print(resident_peak_bytes(call))


if __name__ == "__main__":
    main(*sys.argv[1:])
