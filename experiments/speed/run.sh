#!/bin/bash
# All benchmarks: on an NVIDIA GPU within ten minutes, after the tests of the model on it; without one on one CPU thread, in
# about an hour.
#
#     experiments/speed/run.sh FOLDER
#
# FOLDER gets one JSON file of records per step and a log. A step that fails or runs out of time does not stop the next:
# records are written length by length, and every benchmark checks for itself that what it times is right.
# PYTHON chooses the interpreter; M2BERT_COMMIT names the source where there is no git.
set -u -o pipefail
if [ $# -ne 1 ]; then
    echo "run.sh: expected one argument, the folder to write to: experiments/speed/run.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$1" || exit 2
out=$(realpath "$1")
cd "$(dirname "$0")/../.." || exit 2
python=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=()

step() { # name, limit in seconds (0: none), command
    local name=$1 limit=$2
    shift 2
    echo "== $name: $*" | tee -a "$out/log.txt"
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tr '\r' '\n' | tee -a "$out/log.txt"
    local status=$?
    [ $status -eq 0 ] || failed+=("$name (status $status)")
}
bench() { # name, limit in seconds, benchmark, its arguments: FOLDER/NAME.json
    local name=$1 limit=$2 benchmark=$3
    shift 3
    step "$name" "$limit" "$python" "experiments/speed/$benchmark.py" "$@" --output "$out/$name.json"
}

if "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    export M2BERT_FILTER_CACHE_BYTES=40000000000 # room for the spectra of all arms side by side
    flash=
    "$python" -c 'import flash_attn' 2>/dev/null && flash=,modernbert-base-flash
    half=(--dtype bfloat16)
    forward=("${half[@]}" --budget-seconds 6)
    step tests 120 "$python" -m pytest tests/model -q -p no:cacheprovider
    bench forward 120 forward "${forward[@]}" --lengths 128,512,2048,8192,32768 \
        --arms "ours,ours-graph,ours-torch,original,ours:float32,original:float32,modernbert-base$flash"
    bench training 80 forward "${forward[@]}" --mode training --lengths 2048,8192,32768 \
        --arms "ours,ours-torch,original,modernbert-base$flash"
    bench ops 50 ops "${half[@]}"
    bench batches 70 forward "${forward[@]}" --batch-tokens 32768 --lengths 128,512,2048,8192 \
        --arms "ours,ours-graph,ours-torch,original,modernbert-base$flash"
    bench ops-training 40 ops "${half[@]}" --mode training
    bench peers 90 forward "${forward[@]}" --lengths 512,2048,8192,32768 \
        --arms ours,bert-base,minilm-l6,granite-97m,qwen3-0.6b,mistral-7b
else
    export OMP_NUM_THREADS=1
    ours=ours:bfloat16,ours:float32,original:float32
    peers=modernbert-base:float32,modernbert-base:bfloat16,bert-base:float32,minilm-l6:float32,granite-97m:bfloat16
    bench forward 0 forward --rounds 3 --memory --lengths 128,512,2048,8192 --max-seconds 100 --arms "$ours,$peers"
    bench long 0 forward --rounds 3 --memory --lengths 32768 --max-seconds 300 --arms "$ours,bert-base:float32"
    bench training 0 forward --rounds 3 --mode training --lengths 512,2048 --arms "$ours"
    bench query 0 query
    bench ops 0 ops
    bench ops-training 0 ops --mode training
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf 'not finished: %s\n' "${failed[@]}" | tee -a "$out/log.txt"
    exit 1
fi
