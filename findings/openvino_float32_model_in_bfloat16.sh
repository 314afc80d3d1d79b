#!/usr/bin/env bash
# OpenVINO: a float32 model is computed in bfloat16 on processors that have it, unless a hint says otherwise.
#
# Expected: a model whose weights, inputs and outputs are float32 is computed in float32, as onnxruntime and torch do. The
# result agrees with theirs to about 1e-6.
#
# What happens: on a CPU with AVX512-BF16 or AMX, compile_model chooses bfloat16 for matrix products. The outputs are still
# float32 arrays, so nothing shows it; the relative error is near 1e-3. Nothing is logged. The setting
# {"INFERENCE_PRECISION_HINT": "f32"} brings float32 back. The same file gives other vectors on another machine.
#
# Versions: openvino 2026.4.1, onnx 1.23.2 (Python 3.11). Source: the CPU plugin's property INFERENCE_PRECISION_HINT.
# The script multiplies by a random float32 matrix, with and without the hint, and fails if both are as precise. On a
# processor without bfloat16 it prints so and ends.
set -euo pipefail
grep -q -E "avx512_bf16|amx_bf16" /proc/cpuinfo || { echo "this processor has no bfloat16"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 numpy
FOLDER="$folder" "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import os

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)
x, weight = (random.standard_normal(shape).astype(np.float32) for shape in ((64, 256), (256, 256)))
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])],
    "product",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(x.shape))],
    [numpy_helper.from_array(weight, "w")],
)
path = os.path.join(os.environ["FOLDER"], "model.onnx")
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
exact = x.astype(np.float64) @ weight.astype(np.float64)
print("openvino", openvino.__version__)
errors = {}
for name, settings in {"default": {}, "hint f32": {"INFERENCE_PRECISION_HINT": "f32"}}.items():
    model = openvino.Core().compile_model(path, "CPU", settings)
    y = model({"x": x})["y"]
    errors[name] = float(np.abs(y - exact).max() / np.abs(exact).max())
    print(f"{name}: outputs {y.dtype}, precision {model.get_property('INFERENCE_PRECISION_HINT')}, error {errors[name]:.1e}")
assert errors["hint f32"] < 1e-6, "float32 is not what it was"
assert errors["default"] > 1e-4, "the default is float32 now"
PY
