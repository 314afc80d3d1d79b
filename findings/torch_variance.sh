#!/usr/bin/env bash
# torch: one call of var, std or var_mean takes four to ten times as long on a CPU as the two passes that it replaces.
#
# Expected: torch.var_mean(x, dim) reads x once and returns two results, so that it is at least as fast as x.mean(dim) and
# the mean of (x - mean) ** 2, which write a whole tensor in between. Whoever standardizes vectors, or writes a norm by
# hand, chooses it for speed.
#
# What happens: for 2,048 float32 vectors of 768 numbers, var, std and var_mean take 6 to 8 ns a number along either
# dimension, the two passes 0.7 to 2 ns. torch updates mean and variance in float64, one number after the other (Welford),
# where its sums and products take many numbers at a time. The result is right to the last digit. That of the two passes
# is off by a few units in the last place.
#
# Versions: torch 2.13.0 on x86-64 (AVX2). Source: std_var_kernel in aten/src/ATen/native/cpu/ReduceOpsKernel.cpp. The
# script times all in turns along both dimensions, and fails if var_mean is not slower.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PY'
import statistics
import time

import torch


def two_passes(x, dim):
    mean = x.mean(dim, keepdim=True)
    return (x - mean).square_().mean(dim)


print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
x = torch.randn(2048, 768)
for dim in (0, 1):
    functions = {
        "var_mean": lambda: torch.var_mean(x, dim, correction=0)[0],
        "std": lambda: torch.std(x, dim, correction=0).square(),
        "two passes": lambda: two_passes(x, dim),
    }
    seconds = {name: [] for name in functions}
    for _ in range(20):
        for name, function in functions.items():
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    times = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
    exact = x.double().var(dim, correction=0)
    errors = {name: ((f().double() - exact).abs() / exact).max().item() for name, f in functions.items()}
    print(f"dim={dim}:", ", ".join(f"{name} {times[name]:.1f} ms (error {errors[name]:.0e})" for name in functions))
    assert times["var_mean"] > 1.5 * times["two passes"], "var_mean is no longer slower"
PY
