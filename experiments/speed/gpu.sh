#!/bin/bash
# Everything that needs a GPU, within ten minutes: tests of the model on the GPU, then all benchmarks.
#
#     experiments/speed/gpu.sh FOLDER
#
# FOLDER gets one JSON file of records per step and a log. A step that fails or runs out of time does not stop the next:
# records are written length by length, and every benchmark checks for itself that what it times is right.
# PYTHON chooses the interpreter; M2BERT_COMMIT names the source where there is no git.
set -u -o pipefail
if [ $# -ne 1 ]; then
    echo "gpu.sh: expected one argument, the folder to write to: experiments/speed/gpu.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$1" || exit 2
out=$(realpath "$1")
cd "$(dirname "$0")/../.." || exit 2
python=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export M2BERT_FILTER_CACHE_BYTES=40000000000 # room for the spectra of all arms side by side
failed=()

step() { # name, limit in seconds, command
    local name=$1 limit=$2
    shift 2
    echo "== $name: $*" | tee -a "$out/log.txt"
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tr '\r' '\n' | tee -a "$out/log.txt"
    local status=$?
    [ $status -eq 0 ] || failed+=("$name (status $status)")
}

if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: torch sees no NVIDIA GPU" >&2
    exit 2
fi
flash=
"$python" -c 'import flash_attn' 2>/dev/null && flash=,modernbert-base-flash
forward=("$python" experiments/speed/forward.py --dtype bfloat16 --budget-seconds 6)
ops=("$python" experiments/speed/ops.py --dtype bfloat16)

step tests 120 "$python" -m pytest tests/model -q -p no:cacheprovider
step forward 120 "${forward[@]}" --lengths 128,512,2048,8192,32768 --output "$out/forward.json" \
    --arms "ours,ours-graph,ours-torch,original,ours:float32,original:float32,modernbert-base$flash"
step training 80 "${forward[@]}" --mode training --lengths 2048,8192,32768 --output "$out/training.json" \
    --arms "ours,ours-torch,original,modernbert-base$flash"
step ops 50 "${ops[@]}" --output "$out/ops.json"
step batches 70 "${forward[@]}" --batch-tokens 32768 --lengths 128,512,2048,8192 --output "$out/batches.json" \
    --arms "ours,ours-graph,ours-torch,original,modernbert-base$flash"
step ops-training 40 "${ops[@]}" --mode training --output "$out/ops-training.json"
step peers 90 "${forward[@]}" --lengths 512,2048,8192,32768 --output "$out/peers.json" \
    --arms ours,bert-base,minilm-l6,granite-97m,qwen3-0.6b,mistral-7b

if [ ${#failed[@]} -gt 0 ]; then
    printf 'not finished: %s\n' "${failed[@]}" | tee -a "$out/log.txt"
    exit 1
fi
