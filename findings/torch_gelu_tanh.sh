#!/usr/bin/env bash
# torch: the tanh approximation of GELU, which exists to be cheaper than the exact function, is slower on a CPU.
#
# Expected: encoders name "gelu_pytorch_tanh" in their configuration because the exact GELU needs the error function.
# Whoever serves such a model on a CPU believes that the approximation saves time.
#
# What happens: in float32 and bfloat16, F.gelu(x, approximate="tanh") takes 1.7 to 3.5 times as long as F.gelu(x), the
# exact one. For the exact one torch evaluates a short polynomial of its own, many numbers at a time. For the approximation
# it calls a library's tanh, which is right to one unit in the last place. So the approximation costs time and exactness.
#
# Versions: torch 2.13.0 on x86-64 (AVX2). Source: GeluKernelImpl in aten/src/ATen/native/cpu/Activation.cpp, erf and tanh
# in aten/src/ATen/cpu/vec. The script times both in turns, and fails if the approximation is not slower.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PY'
import statistics
import time

import torch
from torch.nn import functional as F

print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
for dtype in (torch.float32, torch.bfloat16):
    x = torch.randn(512, 3072).to(dtype)  # 512 tokens, the inner width of BERT-base
    seconds = {"none": [], "tanh": []}
    for _ in range(30):
        for kind, times in seconds.items():
            start = time.process_time()
            F.gelu(x, approximate=kind)
            times.append(time.process_time() - start)
    exact, tanh = (statistics.median(times) * 1e3 for times in seconds.values())
    error = (F.gelu(x.double(), approximate="tanh") - F.gelu(x.double())).abs().max().item()
    print(f"{dtype}: exact {exact:.2f} ms, tanh {tanh:.2f} ms, {tanh / exact:.1f} times; they differ by {error:.0e}")
    assert tanh > 1.2 * exact, "the approximation is no longer slower"
PY
