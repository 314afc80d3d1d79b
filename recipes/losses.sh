#!/usr/bin/env bash
# After recipes/m2bert_small.sh: the second stage under other losses and rates, in windows of 4,096 tokens, two seeds each.
# Development scores only. An hour on one CPU core; records to recipes/results/losses/, table by recipes/report.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ACCELERATE_USE_CPU=true
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 GLIBC_TUNABLES=glibc.malloc.hugetlb=1

[ -f runs/mined.parquet ] || "$PYTHON" -m m2bert_train.mine_negatives --data runs/pairs --task pydocs qmsum --negatives 8 \
    --output runs/mined.parquet
mkdir -p recipes/results/losses

# train NAME [key=value ...]: from the bag, 40 steps
train() {
    local name=$1 seed; shift
    for seed in 0 1; do
        [ -d "runs/losses/$name-$seed" ] || "$PYTHON" train/opl.py --config m2bert-small output_dir="runs/losses/$name-$seed" \
            model.path=runs/m2bert-small-bag data.document_tokens=4096 evaluation.every=20 evaluation.select=true seed="$seed" "$@"
        cp "runs/losses/$name-$seed/training.json" "recipes/results/losses/$name-$seed.json"
    done
}

for rate in 3.0e-4 1.0e-3 3.0e-3; do
    train "mnrl-$rate" optim.layer_lr="$rate"
    train "opl-$rate" optim.layer_lr="$rate" loss.name=opl
done
train opl-weighted-1.0e-3 optim.layer_lr=1.0e-3 loss.name=opl loss.positive_weight=10
train mnrl-mined-1.0e-3 optim.layer_lr=1.0e-3 data.negatives_path=runs/mined.parquet data.negatives=2 data.batch_size=6
train prototype-1.0e-3 optim.layer_lr=1.0e-3 loss.name=prototype loss.teacher=runs/MiniLM data.document_window=first
train opl-after-mnrl-1.0e-3 optim.layer_lr=1.0e-3 loss.name=opl model.path=runs/m2bert-small
