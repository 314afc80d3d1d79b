#!/bin/bash
# The standard set on a CPU, one thread, about an hour: whole models, short queries, operations, training.
#
#     benchmarks/cpu.sh FOLDER
#
# FOLDER gets one JSON file of records per step. PYTHON chooses the interpreter.
set -eu
if [ $# -ne 1 ]; then
    echo "cpu.sh: expected one argument, the folder to write to: benchmarks/cpu.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$1"
out=$(realpath "$1")
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1
ours=ours:bfloat16,ours:float32,original:float32
peers=modernbert-base:float32,modernbert-base:bfloat16,bert-base:float32,bert-base:bfloat16,minilm-l6:float32
forward=("$python" benchmarks/forward.py --rounds 3 --memory)

"${forward[@]}" --lengths 128,512,2048,8192 --max-seconds 100 --output "$out/forward.json" \
    --arms "$ours,$peers,granite-97m:bfloat16,qwen3-0.6b:bfloat16"
"$python" benchmarks/query.py --output "$out/query.json"
"${forward[@]}" --lengths 32768 --max-seconds 300 --output "$out/long.json" \
    --arms "$ours,bert-base:float32,bert-base:bfloat16,minilm-l6:float32"
"$python" benchmarks/ops.py --output "$out/ops.json"
"$python" benchmarks/ops.py --mode training --output "$out/ops-training.json"
"$python" benchmarks/forward.py --mode training --rounds 3 --lengths 512,2048,8192 --max-seconds 200 \
    --arms "$ours" --output "$out/training.json"
