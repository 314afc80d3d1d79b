#!/usr/bin/env bash
# OpenVINO: int64 is computed in 32 bits on a CPU, and what does not fit is cut off without a word.
#
# Expected: a model whose inputs and outputs are int64 is computed in int64, as onnxruntime and numpy do, or is refused.
#
# What happens: the CPU plugin turns int64 into int32 inside of the model. Products wrap around, and constants are cut to
# 2**31 - 1. The outputs still have the type int64, and nothing is logged. Keys such as row * 2**40 + id, which Unique then
# counts, mix the rows of a batch, while a batch of one row is right.
#
# Versions: openvino 2026.4.1, onnx 1.23.2, onnxruntime 1.32.0 (Python 3.11).
# The script multiplies two int64 numbers in both runtimes, and fails if OpenVINO is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
FOLDER="$folder" "$folder/venv/bin/python" - <<'PY'
import os

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

graph = helper.make_graph(
    [helper.make_node("Mul", ["x", "factor"], ["product"])],
    "product",
    [helper.make_tensor_value_info("x", TensorProto.INT64, [3])],
    [helper.make_tensor_value_info("product", TensorProto.INT64, [3])],
    [numpy_helper.from_array(np.array([100_000, 100_000, 2**40]), "factor")],
)
path = os.path.join(os.environ["FOLDER"], "model.onnx")
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)

x = np.array([2, 100_000, 3])
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
[exact] = session.run(["product"], {"x": x})
found = openvino.Core().compile_model(path, "CPU")({"x": x})["product"]
print("openvino", openvino.__version__)
print("onnxruntime:", exact.dtype, exact.tolist())
print("OpenVINO:   ", found.dtype, found.tolist())
assert found.tolist() != exact.tolist(), "OpenVINO computes int64 in 64 bits"
PY
