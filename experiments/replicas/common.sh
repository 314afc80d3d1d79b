# What the replicas share: `source` it. One thread an arm, so that arms can run side by side; seed as the first argument.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
SEED=${1:?the seed, for example 0}
RUNS=runs/replicas/seed$SEED
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false ACCELERATE_USE_CPU=true
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
mkdir -p "$RUNS" experiments/replicas/results

# train ENTRY CONFIG NAME [key=value ...]: a run that is there already is not repeated, one that was stopped goes on
train() {
    local entry=$1 config=$2 name=$3; shift 3
    "$PYTHON" "train/$entry.py" --config "experiments/replicas/configs/$config.yaml" output_dir="$RUNS/$name" seed="$SEED" \
        resume=true checkpoint_every=50 "$@"
}

# score TABLE NAME...: test nDCG@10 of trained encoders on both tasks
score() {
    local table=$1 encoders=(); shift
    for name in "$@"; do encoders+=(--encoder "$RUNS/$name"); done
    for task in qmsum pydocs; do
        "$PYTHON" -m m2bert.hub.cli eval "${encoders[@]}" --data runs/replicas/data/tasks --task $task --split test \
            --policy truncate --output "$RUNS/$table-$task.json" --overwrite
        compact "$RUNS/$table-$task.json" "$table-$task"
    done
}

# keep TABLE NAME...: the records of pretraining runs
keep() {
    local table=$1; shift
    for name in "$@"; do compact "$RUNS/$name/training.json" "$table-$name"; done
}

# compact FILE NAME: a JSON file among the results, on one line
compact() {
    "$PYTHON" -c 'import json, sys; print(json.dumps(json.load(open(sys.argv[1])), separators=(",", ":")))' "$1" \
        > "experiments/replicas/results/$2-seed$SEED.json"
}
