#!/usr/bin/env bash
# torch.export: one tensor given for two example inputs exports a graph that reads only the last of them.
#
# Expected: example inputs only tell shapes and types. A program exported with (x, x), as one writes it when one tensor of
# ones serves as ids and as mask, computes the same function of its two inputs as one exported with (x, x.clone()).
#
# What happens: the graph has both inputs, but every use of the first one reads the second. a * 2 + b becomes b * 2 + b.
# There is no warning, in strict mode or not, and torch.onnx.export, which exports the same way, writes this graph too.
#
# Versions: torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2 (Python 3.11, CPU). Source: torch.export.export.
# The script exports a * 2 + b both ways, calls both with a = 1 and b = 10, and fails if both give 12.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy onnx==1.23.2 onnxscript==0.7.2
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import onnx
import torch
from onnx.reference import ReferenceEvaluator


class Model(torch.nn.Module):
    def forward(self, a, b):
        return a * 2 + b


print("torch", torch.__version__, "onnx", onnx.__version__)
example, one, ten = torch.ones(3), torch.ones(3), torch.full((3,), 10.0)
results = {}
for name, inputs in {"two tensors": (example, example.clone()), "one tensor twice": (example, example)}.items():
    for strict in (False, True):
        program = torch.export.export(Model(), inputs, strict=strict)
        results[f"{name}, strict={strict}"] = program.module()(one, ten)[0].item()
    proto = torch.onnx.export(Model(), inputs, dynamo=True, verbose=False, input_names=["a", "b"]).model_proto
    results[f"{name}, ONNX"] = float(ReferenceEvaluator(proto).run(None, {"a": one.numpy(), "b": ten.numpy()})[0][0])
for name, value in results.items():
    print(f"exported with {name}: 1 * 2 + 10 = {value:g}")
assert all(value == 12 for name, value in results.items() if name.startswith("two")), "another export than described"
assert all(value == 30 for name, value in results.items() if name.startswith("one")), "one tensor twice is right now"
PY
