#!/usr/bin/env bash
# torch.matmul: freezing a weight changes the result, although no gradient is computed.
#
# Expected: under torch.no_grad() the product of two tensors depends on their values alone. Whoever freezes a model with
# requires_grad_(False), or serves detached copies of its weights, gets the same vectors as before, bit for bit.
#
# What happens: for weight (out, in) @ x (batch, in, length), matmul asks whether the weight requires a gradient, also
# inside no_grad. If it does, the batch is folded into one mm; if it does not, the weight is repeated and bmm is called. The
# two round differently, so the same numbers give other last bits once a weight is frozen.
#
# Versions: torch 2.13.0 on a CPU. Source: should_fold in aten/src/ATen/native/LinearAlgebra.cpp.
# The script prints the operations that ran, and fails if they no longer depend on requires_grad.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.profiler import ProfilerActivity, profile

torch.manual_seed(0)
weight, x = torch.randn(4, 64), torch.randn(3, 64, 8)


def product(weight):
    with profile(activities=[ProfilerActivity.CPU]) as run, torch.no_grad():
        result = weight @ x
    return result, [event.name for event in run.events() if event.name in ("aten::mm", "aten::mv", "aten::bmm")]


trained, with_gradient = product(torch.nn.Parameter(weight))
frozen, without = product(torch.nn.Parameter(weight, requires_grad=False))
print("torch", torch.__version__)
print("requires_grad=True: ", with_gradient)
print("requires_grad=False:", without)
print("largest difference of the two results:", (trained - frozen).abs().max().item())
assert with_gradient != without, "the operation no longer depends on requires_grad"
PY
