#!/usr/bin/env bash
# Everything behind models/m2bert-small, from text to folder: read from top to bottom. Half an hour on one CPU core; a stopped
# run goes on where it was. The shared data are named by DATA; PYTHON names the interpreter. STEPS replays it in short.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python} DATA=${DATA:-../shared/data} TOKENIZER=${TOKENIZER:-../shared/tokenizer}
RUNS=${RUNS:-runs}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ACCELERATE_USE_CPU=true
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

# train CONFIG NAME [key=value ...]: a run that is there already is not repeated, one that was stopped goes on
train() {
    local config=$1 name=$2; shift 2
    "$PYTHON" train/opl.py --config "$config" output_dir="$RUNS/$name" data.path="$RUNS/pairs" tokenizer.path="$TOKENIZER" \
        resume=true ${STEPS:+steps=$STEPS evaluation.every=$STEPS} "$@"
}

# Data: pairs from raw text, and the training and validation splits of pydocs and QMSUM
[ -d "$RUNS/pydocs" ] || "$PYTHON" -m m2bert.eval.tasks.pydocs --output "$RUNS/pydocs"
[ -d "$RUNS/pairs" ] || "$PYTHON" -m m2bert.train.pairs.make_pairs --output "$RUNS/pairs" \
    --source web="$DATA/pretrain/web" --source encyclopedic="$DATA/pretrain/encyclopedic" \
    --source books="$DATA/pretrain/books" --source pydocs="$RUNS/pydocs" --source qmsum="$DATA/locov1_qmsum"

layer_free=(model.architecture.num_hidden_layers=0 model.architecture.contextual_pooling=false precision=null)

# The model, and its control without layers: the same start, data and number of steps
train m2bert-small-bag m2bert-small-bag
train m2bert-small m2bert-small model.path="$RUNS/m2bert-small-bag"
train m2bert-small control model.path="$RUNS/m2bert-small-bag" "${layer_free[@]}"

# The same without any QMSUM in training
train m2bert-small-bag zero-shot-bag data.tasks="[web, encyclopedic, books, pydocs]"
train m2bert-small zero-shot model.path="$RUNS/zero-shot-bag" data.tasks="[pydocs]"
train m2bert-small zero-shot-control model.path="$RUNS/zero-shot-bag" data.tasks="[pydocs]" "${layer_free[@]}"

for name in m2bert-small control zero-shot zero-shot-control; do
    [ -d "$RUNS/export/$name" ] || "$PYTHON" -m m2bert.cli export --model "$RUNS/$name" --output "$RUNS/export/$name"
done
