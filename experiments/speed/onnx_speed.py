"""Measure torch, onnxruntime and OpenVINO on folders that `m2bert export --onnx` wrote: `onnx_speed.py FOLDER ..`.

Each prints a table: milliseconds of process time for one text, the median of five calls. The runtimes take turns, and
have one thread. Further columns are the largest differences of the vectors from torch's.
"""

import statistics
import sys
import time

import numpy as np
import onnxruntime
import openvino
import torch
from transformers import AutoModel

LENGTHS = 32, 128, 512, 2048, 6144, 8192, 16384
CALLS = 5


def runtimes(folder: str) -> dict:
    """Return {name: function of ids (1, L) that gives the vector}."""
    file = f"{folder}/onnx/model.onnx"
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(file, "CPU", settings)

    def run_torch(ids):
        with torch.no_grad():
            x = torch.from_numpy(ids)
            return torch.nn.functional.normalize(model(x, torch.ones_like(x)).pooler_output).numpy()

    def feeds(ids):
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    return {
        "torch": run_torch,
        "onnxruntime": lambda ids: session.run(["sentence_embedding"], feeds(ids))[0],
        "OpenVINO": lambda ids: compiled(feeds(ids))["sentence_embedding"],
    }


def main():
    torch.set_num_threads(1)
    for folder in sys.argv[1:]:
        functions = runtimes(folder)
        longest = AutoModel.from_pretrained(folder, trust_remote_code=True).config.max_position_embeddings
        print(f"\n{folder}\n\n| tokens | {' | '.join(functions)} | difference of onnxruntime | of OpenVINO |")
        print("|---|---|---|---|---|---|")
        for length in (each for each in LENGTHS if each <= longest):
            ids = np.random.default_rng(length).integers(5, 29000, (1, length))
            vectors = [function(ids) for function in functions.values()]
            times = {name: [] for name in functions}
            for _ in range(CALLS):
                for name, function in functions.items():
                    start = time.process_time()
                    function(ids)
                    times[name].append(1000 * (time.process_time() - start))
            cells = [f"{statistics.median(each):.1f}" for each in times.values()]
            cells += [f"{np.abs(vector - vectors[0]).max():.0e}" for vector in vectors[1:]]
            print(f"| {length} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
