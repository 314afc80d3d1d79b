#!/usr/bin/env bash
# What the long convolution is worth beside attention and beside no layers: retrieval, then masked-language modeling,
# three quarters of an hour on one core. MODEL is a model without layers, PAIRS a folder of labeled pairs
# (experiments/m2bert_small/run.sh makes both), DATA the shared data. A run whose record is there is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python} DATA=${DATA:-../shared/data}
MODEL=${MODEL:-runs/m2bert-small-bag} PAIRS=${PAIRS:-runs/pairs}
RESULTS=experiments/replicas/results/twins
source experiments/replicas/environment.sh

# ask {best,steps} ENTRY MIXER: what earlier runs say
ask() { "$PYTHON" experiments/replicas/twin_runs.py "$@"; }

# run ENTRY MIXER NAME SEED [key=value ...]
run() {
    local entry=$1 mixer=$2 name=$1-$2-$3-seed$4 seed=$4; shift 4
    [ -f "$RESULTS/$name.json" ] && return
    echo "$(date +%T) $name"
    "$PYTHON" experiments/replicas/twins.py --mixer "$mixer" --record "$RESULTS/$name.json" "$entry" "${common[@]}" \
        output_dir="runs/twins/$name" seed="$seed" checkpoint_every=0 log_every=10 precision=null "$@" \
        > "runs/twins/$name.log" 2>&1
}
mkdir -p runs/twins "$RESULTS"

# Retrieval: a bag of words goes on training, with a layer added as the identity or without. What all arms share is
# tuned on the arm without layers.
common=(--config opl-small model.path="$MODEL" tokenizer.path="$MODEL" model.architecture.contextual_pooling=true
    model.architecture.num_hidden_layers=1 model.architecture.max_position_embeddings=2048
    data.path="$PAIRS" "data.tasks=[pydocs, qmsum]" data.document_tokens=1024 data.query_tokens=512 data.batch_size=16
    data.query_dropout=false data.passage_share=0.4 data.passages_per_document=8 "data.passage_tokens=[24, 128]"
    loss.name=mnrl steps=50 optim.lr=1e-5 optim.filter_lr=1e-5 evaluation.every=0)
run opl none start 0 steps=0 evaluation.select=true
for rate in 1e-4 3e-4 1e-3 3e-3; do run opl none "$rate" 0 optim.pooler_lr=$rate; done
shared=$(ask best opl none)
for seed in 1 2; do run opl none best $seed $shared; done
for mixer in long-conv attention; do
    for rate in 2e-4 1e-3 5e-3; do run opl $mixer "$rate" 0 $shared optim.layer_lr=$rate; done
    rates=$(ask best opl $mixer)
    for seed in 1 2; do run opl $mixer best $seed $rates; done
done
rates=$(ask best opl long-conv) steps=$(ask steps opl long-conv)
run opl long-conv flops 0 $rates steps="$steps"

# Masked-language modeling, from nothing: two layers of 128, no position embeddings, one rate for filters and layers.
text() { echo "{path: $DATA/pretrain/$1}"; }
common=(--config mlm-small data.token_cache=runs/twins/token-cache data.max_tokens=512 data.batch_tokens=8192
    "data.sources=[$(text web), $(text encyclopedic), $(text books)]" data.mask_probability=0.2
    tokenizer.vocab_size=8192 model.new_model.num_hidden_layers=2 model.new_model.intermediate_size=512
    model.new_model.max_position_embeddings=512 model.new_model.position_embeddings=false model.new_model.pooling=mean
    model.new_model.num_pooling_heads=1 steps=80 evaluation.every=0 evaluation.examples=64)
for rate in 1e-3 2e-3 5e-3; do run mlm none "$rate" 0 optim.lr=$rate; done
shared=$(ask best mlm none)
for seed in 1 2; do run mlm none best $seed $shared; done
for mixer in long-conv attention; do
    for rate in 5e-4 2e-3 5e-3; do run mlm $mixer "$rate" 0 $shared optim.layer_lr=$rate optim.filter_lr=$rate; done
    rates=$(ask best mlm $mixer)
    for seed in 1 2; do run mlm $mixer best $seed $rates; done
done
rates=$(ask best mlm long-conv) steps=$(ask steps mlm long-conv)
run mlm long-conv flops 0 $rates steps="$steps"

# The best rate without layers is the highest of the grid: once, a higher one.
run mlm none other-1e-2 0 optim.lr=1e-2

"$PYTHON" experiments/pages.py replicas
