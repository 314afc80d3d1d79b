#!/usr/bin/env bash
# onnxruntime: in a dynamically quantized model, the vector of a text depends on the other texts of its batch.
#
# Expected: quantize_dynamic makes weights int8, and costs a little exactness. Which texts share a batch does not
# matter, as in the float model, or in torchao, which scales the activations of each token by themselves.
#
# What happens: the input of each matrix product is turned into 8 bits when the model runs, with one scale and one
# zero point for the whole tensor: all texts, all tokens, padding as well. One token with large numbers (encoders are
# known for such outliers) makes the steps coarse for everybody. A row gets one vector alone, and another one with
# each other company. per_channel=True concerns the weights only. So a document embedded in batches and the same text
# as a query differ, and the order of the documents decides about the index. Nothing warns. The documentation says
# that parameters are computed on the fly for each activation, and that this is more exact than static ones; it does
# not say that rows of a batch share them. The maintainers call it expected (issue 10111).
#
# Versions: onnxruntime 1.32.0, onnx 1.23.2 on a CPU (Python 3.11). Source: DynamicQuantizeLinear, which
# quantize_dynamic puts before each MatMulInteger. ONNX defines it for the whole tensor. The exporters of
# sentence-transformers and optimum for dynamic int8 write such models. The script runs one row of two products alone
# and beside others, and fails if its result is the same.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
FOLDER="$folder" "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import os
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

for name in ("onnxruntime", "onnx"):
    print(name, version(name))
width, random = 128, np.random.default_rng(0)
weights = [(random.normal(size=(width, width)) / width**0.5).astype(np.float32) for _ in range(2)]
inner = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Relu", ["h"], ["r"])]
nodes = [*inner, helper.make_node("MatMul", ["r", "b"], ["y"])]
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width]) for name in "xy"]
stored = [numpy_helper.from_array(values, name) for values, name in zip(weights, "ab")]
graph = helper.make_graph(nodes, "two_products", ends[:1], ends[1:], stored)
paths = {kind: f"{os.environ['FOLDER']}/{kind}.onnx" for kind in ("float32", "int8", "int8 per channel")}
opset = helper.make_opsetid("", 17)
onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), paths["float32"])
for kind in ("int8", "int8 per channel"):
    quantize_dynamic(paths["float32"], paths[kind], per_channel="channel" in kind, weight_type=QuantType.QInt8)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


row, other = random.normal(size=(2, 1, width)).astype(np.float32)
outlier = other.copy()
outlier[0, 7] = 400
batches = {"beside a like row": other, "beside a row with one outlier": outlier}
found = {}
for kind, path in paths.items():
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    alone = session.run(None, {"x": row})[0][0]
    for company, more in batches.items():
        beside = session.run(None, {"x": np.concatenate([row, more])})[0][0]
        found[kind, company] = cosine(alone, beside)
        print(f"{kind}, alone and {company}: cosine {found[kind, company]:.6f}")
for (kind, company), value in found.items():
    if kind == "float32":
        assert value > 0.999999
    else:
        assert value < (0.99999 if "like" in company else 0.97), "the company does not matter now"
PY
