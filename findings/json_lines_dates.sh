#!/usr/bin/env bash
# datasets: a JSON-lines column of text changes its texts when they look like dates, or when one row holds a number.
#
# Expected: strings in a JSON-lines file come back as the same strings; and a column declared as text with
# `features` comes back as written, or is refused.
#
# What happens: the reader infers types. If all texts of a block look like dates ("2011-01-01"), the column comes back as
# datetimes. With features={"text": Value("string")} the text comes back changed, as "2011-01-01 00:00:00". If one
# row holds a number, the strings of the other rows come back as JSON, in quotation marks ('"fine"'). No error or warning.
#
# Versions: datasets 5.2.0, pyarrow 26.0.1, pandas 3.1.1 (Python 3.11). Source: datasets/packaged_modules/json.
# The script writes three files of valid JSON lines, reads them, and fails if the texts come back as written.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
FOLDER="$folder" HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" - <<'PY'
import json
import os

import datasets
import pyarrow
from datasets import Features, Value, load_dataset

datasets.disable_progress_bars()
print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__)


def read(name, values, **options):
    path = f"{os.environ['FOLDER']}/{name}.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": value}) + "\n" for value in values)
    found = load_dataset("json", data_files=path, split="train", **options)["text"][:]
    print(f"{name}: wrote {values}, read {found}")
    return found


text = Features({"text": Value("string")})
assert read("dates", ["2011-01-01", "2012-02-02"]) != ["2011-01-01", "2012-02-02"], "dates are text now"
assert read("declared", ["2011-01-01", "2012-02-02"], features=text) != ["2011-01-01", "2012-02-02"], "as declared now"
assert read("mixed", ["fine", 3, "good"], features=text)[0] != "fine", "a number leaves the others alone now"
PY
