#!/bin/bash
# The standard set on a CPU, one thread, about an hour: whole models, short queries, operations, training.
#
#     experiments/speed/cpu.sh FOLDER
#
# FOLDER gets one JSON file of records per step. PYTHON chooses the interpreter.
set -eu
if [ $# -ne 1 ]; then
    echo "cpu.sh: expected one argument, the folder to write to: experiments/speed/cpu.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$1"
out=$(realpath "$1")
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1
ours=ours:bfloat16,ours:float32,original:float32
peers=modernbert-base:float32,modernbert-base:bfloat16,bert-base:float32,minilm-l6:float32,granite-97m:bfloat16
forward=("$python" experiments/speed/forward.py --rounds 3)

"${forward[@]}" --memory --lengths 128,512,2048,8192 --max-seconds 100 --arms "$ours,$peers" --output "$out/forward.json"
"${forward[@]}" --memory --lengths 32768 --max-seconds 300 --arms "$ours,bert-base:float32" --output "$out/long.json"
"${forward[@]}" --mode training --lengths 512,2048 --arms "$ours" --output "$out/training.json"
"$python" experiments/speed/query.py --output "$out/query.json"
"$python" experiments/speed/ops.py --output "$out/ops.json"
"$python" experiments/speed/ops.py --mode training --output "$out/ops-training.json"
