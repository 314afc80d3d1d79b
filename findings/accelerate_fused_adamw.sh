#!/usr/bin/env bash
# accelerate: with a fused AdamW and a gradient scaler, skipped steps are not noticed, and the learning rate goes on.
#
# Expected: `step_was_skipped` is True after a step whose gradients overflowed, and the prepared scheduler does not move then,
# as it does with AdamW that is not fused. Fused or not is a matter of speed.
#
# What happens: torch's scaler does not call step() of a common optimizer if a gradient is not finite. accelerate sees from
# this that the step was skipped. A fused optimizer leaves the weights alone by itself: the scaler always calls it and
# passes `found_inf`. So accelerate sees a step, `step_was_skipped` is False, and the scheduler moves. The weights are right,
# the schedule is too far on by every overflow: the first ones, while the scale falls from 65536, fall into the warmup.
#
# Versions: accelerate 1.15.0, torch 2.13.0 (Python 3.11, CPU). Source: AcceleratedOptimizer.step (accelerate),
# GradScaler.step and `_step_supports_amp_scaling` (torch). It is the same for every fused optimizer.
# The script overflows two of four steps, and fails if fused and not fused behave alike.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 accelerate==1.15.0 numpy
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import accelerate
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler

print("accelerate", accelerate.__version__, "torch", torch.__version__)
Accelerator(cpu=True)


def train(fused: bool) -> list[tuple[bool, bool, float]]:
    weight = torch.nn.Parameter(torch.ones(4))
    adamw = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = AcceleratedOptimizer(adamw, scaler=scaler, device_placement=False)
    decay = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 1 / (1 + step))
    scheduler, seen = AcceleratedScheduler(decay, optimizer, split_batches=True), []
    for factor in (1.0, float("inf"), 1.0, float("inf")):
        before = weight.detach().clone()
        scaler.scale((weight * factor).sum()).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        seen.append((not torch.equal(before, weight), optimizer.step_was_skipped, adamw.param_groups[0]["lr"]))
    return seen


for fused in (False, True):
    print("fused" if fused else "not fused")
    for changed, skipped, rate in train(fused):
        print(f"  weights changed: {changed}, step_was_skipped: {skipped}, learning rate then: {rate:.4f}")
plain, fused = train(False), train(True)
assert [row[0] for row in plain] == [row[0] for row in fused] == [True, False, True, False]
assert [row[1] for row in plain] == [False, True, False, True], "not fused: skipped steps are not noticed now"
assert [row[1] for row in fused] == [False] * 4, "fused: skipped steps are noticed now"
assert plain[-1][2] > fused[-1][2], "the learning rates are alike now"
PY
