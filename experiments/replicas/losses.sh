#!/usr/bin/env bash
# Losses from a good start (Table 8 once more): twins.sh's retrieval runs with a layer of long convolutions, under other
# losses; the argument is the seed. Ten minutes on one core. TEACHER is a sentence-transformers model. A run whose record is there is not
# repeated; the records of multiple negatives ranking loss are those of the twins.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python} MODEL=${MODEL:-runs/m2bert-small-bag} PAIRS=${PAIRS:-runs/pairs}
TEACHER=${TEACHER:-runs/MiniLM}
RESULTS=experiments/replicas/results/losses
source experiments/replicas/environment.sh

mkdir -p runs/losses "$RESULTS"
[ -f runs/losses/mined.parquet ] || "$PYTHON" -m m2bert.train.pairs.mine_negatives --data "$PAIRS" --task pydocs qmsum \
    --negatives 8 --output runs/losses/mined.parquet

common=(--config opl-small model.path="$MODEL" tokenizer.path="$MODEL" model.architecture.contextual_pooling=true
    model.architecture.num_hidden_layers=1 model.architecture.max_position_embeddings=2048
    data.path="$PAIRS" "data.tasks=[pydocs, qmsum]" data.document_tokens=1024 data.query_tokens=512 data.batch_size=16
    data.query_dropout=false data.passage_share=0.4 data.passages_per_document=8 "data.passage_tokens=[24, 128]"
    steps=50 optim.lr=1e-5 optim.pooler_lr=1e-4 optim.filter_lr=1e-5 evaluation.every=0 checkpoint_every=0 log_every=10)

# run NAME SEED [key=value ...]: two rates of the layer
run() {
    local name=$1 seed=$2 rate; shift 2
    for rate in 1e-3 5e-3; do
        local record=$RESULTS/$name-$rate-seed$seed.json
        [ -f "$record" ] && continue
        echo "$(date +%T) $name $rate $seed"
        "$PYTHON" experiments/replicas/twins.py --mixer long-conv --record "$record" opl "${common[@]}" "$@" seed="$seed" \
            optim.layer_lr="$rate" output_dir="runs/losses/$name-$rate-$seed" > "runs/losses/$name-$rate-$seed.log" 2>&1
    done
}
seed=${1:-0}
run opl "$seed" loss.name=opl
run opl-weighted "$seed" loss.name=opl loss.positive_weight=10
run mined "$seed" loss.name=mnrl data.negatives=2 data.negatives_path=runs/losses/mined.parquet data.batch_size=6
run prototype "$seed" loss.name=prototype loss.teacher="$TEACHER" data.document_window=first data.passage_share=0
