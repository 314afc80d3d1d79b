#!/bin/bash
# All benchmarks: on an NVIDIA GPU in at most 520 seconds, with the tests of the kernels; without one on one CPU thread, in
# about two hours.
#
#     experiments/speed/run.sh FOLDER
#
# FOLDER gets one JSON file of records per step and a log. A step that fails or runs out of time does not stop the next:
# records are written length by length, and what is wrong is recorded as red and not timed. On a GPU the numerics of every
# operation come first, so that a wrong kernel has a name, and the tests last, with all the time that is left.
# PYTHON chooses the interpreter. M2BERT_COMMIT names the source; unless set, it is the commit before the first record is
# written, which may change a tracked file.
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
M2BERT_COMMIT=${M2BERT_COMMIT:-$(git describe --always --dirty --exclude="*" 2>/dev/null || echo unknown)}
export M2BERT_COMMIT
seconds_in_all=520 # of the steps that have a limit; SECONDS is bash's clock
seconds_to_end=5   # for an interrupted step to write what it has
failed=()

note() {
    echo "$1" | tee -a "$out/log.txt"
}
step() { # name, limit in seconds (0: none), command
    local name=$1 limit=$2 left=$((seconds_in_all - SECONDS - seconds_to_end))
    shift 2
    if [ "$limit" -gt 0 ]; then
        if [ $left -lt 5 ]; then
            failed+=("$name (no time left)")
            return
        fi
        [ "$limit" -le $left ] || limit=$left
    fi
    note "== $name, at $SECONDS s, limit $limit s: $*"
    { # whatever the step leaves behind is killed, since it would hold the pipe open
        timeout --signal=INT --kill-after=$seconds_to_end "$limit" "$@" &
        wait $!
        status=$?
        kill -KILL -- -$! 2>/dev/null
        exit $status
    } 2>&1 | tr '\r' '\n' | tee -a "$out/log.txt"
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
    forward=("${half[@]}" --budget-seconds 3)
    bench numerics 95 numerics --jobs 14 --budget-seconds 85
    bench ops 40 ops "${half[@]}"
    bench ops-training 30 ops "${half[@]}" --mode training
    bench forward 90 forward "${forward[@]}" --lengths 128,512,2048,8192,32768 \
        --arms "ours,ours-graph,ours-torch,original,ours:float16,ours:float32,ours-torch:float32,original:float32,modernbert-base$flash"
    bench training 60 forward "${forward[@]}" --mode training --lengths 2048,8192,32768 \
        --arms "ours,ours-torch,original,ours:float16,ours:float32,ours-torch:float32,modernbert-base$flash"
    bench batches 45 forward "${forward[@]}" --batch-tokens 32768 --lengths 128,512,2048,8192 \
        --arms "ours,ours-graph,ours-torch,original,ours:float16,modernbert-base$flash"
    bench scratch 25 forward "${forward[@]}" --lengths 16384,32768 \
        --arms ours,ours-scratch-48,ours-scratch-96,ours-scratch-all
    bench peers 40 forward "${forward[@]}" --lengths 512,2048,8192,32768 \
        --arms ours,bert-base,minilm-l6,granite-97m,qwen3-0.6b,mistral-7b
    PATH=$PATH:/usr/local/cuda/bin
    for tool in racecheck memcheck; do # single allocations: memory past the end of a tensor is nobody's
        if command -v compute-sanitizer >/dev/null; then
            step $tool 20 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
                compute-sanitizer --tool $tool --error-exitcode 9 "$python" experiments/speed/numerics.py \
                --dtypes bfloat16 --lengths 40,300,700 --channels 4 --hidden 64 --output "$out/$tool.json"
        else
            note "not run: $tool, since there is no compute-sanitizer"
        fi
    done
    workers=()
    "$python" -c 'import xdist' 2>/dev/null && workers=(-n 12)
    without_device="compiles_without_spills or machine_code or little_shared" # they compile for other GPUs, on any machine
    step tests $seconds_in_all "$python" -m pytest "${workers[@]}" -q -rfE --tb=short -p no:cacheprovider -m "" \
        -k "not ($without_device)" --junitxml="$out/tests.xml" tests/model/test_triton_*.py tests/model
else
    export OMP_NUM_THREADS=1
    ours=ours:bfloat16,ours:float32,original:float32
    peers=modernbert-base:float32,modernbert-base:bfloat16,bert-base:float32,minilm-l6:float32,granite-97m:bfloat16
    bench forward 0 forward --rounds 3 --memory --lengths 128,512,2048,8192 --max-seconds 50 \
        --arms "$ours,original:bfloat16,$peers"
    bench training 0 forward --rounds 3 --mode training --lengths 512,2048 --arms "$ours"
    bench query 0 query
    bench ops 0 ops --rounds 3
    bench ops-training 0 ops --rounds 3 --mode training
    bench modernbert 0 forward --rounds 1 --lengths 512,8192 --max-seconds 1000 \
        --arms ours:bfloat16,ours:float32,modernbert-base:bfloat16,modernbert-base:float32
    bench long 0 forward --rounds 1 --memory --lengths 32768 --arms "$ours"
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf 'not green: %s\n' "${failed[@]}" | tee -a "$out/log.txt"
    exit 1
fi
