#!/usr/bin/env bash
# Tables 6 to 8 of the paper in the small, about an hour a seed on one core, from the data of prepare.py:
#
#     experiments/replicas/run.sh SEED
#
# One thread a run, so that seeds can run side by side. A run that is there already is not repeated, one that was stopped
# resumes. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
SEED=${1:?the seed, for example 0}
RUNS=runs/replicas/seed$SEED RESULTS=experiments/replicas/results
source experiments/replicas/environment.sh
mkdir -p "$RUNS" "$RESULTS"

# train ENTRY CONFIG NAME [key=value ...]
train() {
    local entry=$1 config=$2 name=$3; shift 3
    "$PYTHON" "train/$entry.py" --config "experiments/replicas/configs/$config.yaml" output_dir="$RUNS/$name" seed="$SEED" \
        resume=true checkpoint_every=50 "$@"
}

# score TABLE NAME...: test nDCG@10 of trained encoders on both tasks
score() {
    local table=$1 encoders=(); shift
    for name in "$@"; do encoders+=(--encoder "$RUNS/$name"); done
    for task in qmsum pydocs; do
        "$PYTHON" -m m2bert.cli eval "${encoders[@]}" --data runs/replicas/data/tasks --task $task --split test \
            --policy truncate --output "$RUNS/$table-$task.json" --overwrite
        compact "$RUNS/$table-$task.json" "$table-$task"
    done
}

# keep TABLE NAME...: the records of training runs
keep() {
    local table=$1; shift
    for name in "$@"; do compact "$RUNS/$name/training.json" "$table-$name"; done
}

# compact FILE NAME: a JSON file among the results, on one line
compact() {
    "$PYTHON" -c 'import json, sys; print(json.dumps(json.load(open(sys.argv[1])), separators=(",", ":")))' "$1" \
        > "$RESULTS/$2-seed$SEED.json"
}

# Table 6: short, long or mixed pretraining examples, the same tokens for each, then the same fine-tuning.
train mlm mlm-short short
train mlm mlm-long long
train mlm mlm mixed
# the same held-out examples for all three: one step of no learning, on the mixture
for arm in short long mixed; do train mlm mlm "held-out-$arm" model.path="$RUNS/$arm" steps=1 optim.lr=0.0; done
for arm in short long mixed; do train opl opl "opl-$arm" model.path="$RUNS/$arm"; done
train opl opl opl-none tokenizer.path=runs/replicas/tokenizer   # no pretraining at all
score table6 opl-short opl-long opl-mixed opl-none
keep table6 short long mixed held-out-short held-out-long held-out-mixed opl-short opl-long opl-mixed opl-none

# Table 7 and Figure 4: at eight times the length, a warm start from the mixed model of Table 6 against a cold one. Every
# way of extending, the cold start with the same steps, and a cold start with the compute of both stages together.
for positions in replicate interpolate; do
    for decay in keep stretch; do
        start=$RUNS/start-$positions-$decay
        [ -d "$start" ] || "$PYTHON" -m m2bert.train.warm_start --model "$RUNS/mixed" --max-length 8192 \
            --positions $positions --decay $decay --output "$start"
        train mlm mlm-8k "warm-$positions-$decay" model.path="$start"
    done
done
train mlm mlm-8k cold
train mlm mlm-8k cold-same-compute steps=225
keep table7 warm-{replicate,interpolate}-{keep,stretch} cold cold-same-compute

# Table 8: losses for fine-tuning the mixed model of Table 6, each with the same compute: 1.85 million tokens forward and
# backward. A cached loss pays a second forward, so it gets three quarters of the tokens; prototype has half for each phase.
start=model.path=$RUNS/mixed
train opl opl loss-opl "$start"
train opl mnrl mnrl-2 "$start" data.batch_size=2 steps=860
train opl mnrl mnrl-cached-2 "$start" data.batch_size=2 data.chunk_tokens=2048 steps=645
train opl mnrl mnrl-cached-32 "$start" data.batch_size=32 data.chunk_tokens=8192 steps=40
train opl mnrl mnrl-cached-128 "$start" data.batch_size=128 data.chunk_tokens=8192 steps=12
# prototype loss in two phases: the teacher reads 128 tokens and was trained with MNRL, then MNRL with batches of 2
train opl mnrl teacher "$start" data.batch_size=32 data.document_tokens=128 steps=100
train opl prototype prototype-first "$start" loss.teacher="$RUNS/teacher" loss.teacher_cache="$RUNS/teacher-vectors" steps=215
train opl mnrl prototype model.path="$RUNS/prototype-first" data.batch_size=2 steps=430
arms=(loss-opl mnrl-2 mnrl-cached-2 mnrl-cached-32 mnrl-cached-128 prototype-first prototype)
score table8 "${arms[@]}" teacher
keep table8 "${arms[@]}" teacher

"$PYTHON" experiments/pages.py replicas
