#!/usr/bin/env bash
# datasets: to_json writes numbers near 1e-12 as 0.0, and smaller ones as they are; to_csv and to_parquet keep all.
#
# Expected: Dataset.to_json and load_dataset("json") bring a column of floats back, to the last digit of a float32 at
# least. JSON has an exponent for small numbers, and Python's json module, to_csv and to_parquet write every float in
# full.
#
# What happens: to_json leaves the writing to pandas, whose default keeps 10 digits after the decimal point, however
# small the number is. So 1.2345678e-7 comes back as 1.235e-7, and what lies between 5e-11 and 1e-15 comes back as 0.
# Below that, pandas writes all digits: 1e-20 comes back. So larger probabilities or weights become 0 and smaller ones
# do not, and a sorted column is no longer sorted. The documentation of to_json names the defaults that it sets and
# not this one. Nothing warns. to_json(..., double_precision=15) moves the border and keeps 15 digits after the point,
# which is the most.
#
# Versions: datasets 5.2.0, pandas 3.1.1, pyarrow 26.0.1 (Python 3.11). Source: JsonDatasetWriter._batch_json in
# datasets/io/json.py, and double_precision of pandas.DataFrame.to_json. The script writes and reads one column of
# numbers in three formats, and fails if JSON keeps them.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1
FOLDER="$folder" HOME="$folder" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import os
from importlib.metadata import version

from datasets import Dataset, disable_progress_bars, load_dataset

for name in ("datasets", "pandas", "pyarrow"):
    print(name, version(name))
disable_progress_bars()
folder = os.environ["FOLDER"]
numbers = [1.2345678e-4, 1.2345678e-7, 1.2345678e-9, 1.2345678e-12, 1.2345678e-14, 1.2345678e-16, 1.2345678e-20]
back = {}
for kind in ("json", "csv", "parquet"):
    dataset = Dataset.from_dict({"score": numbers})
    getattr(dataset, f"to_{kind}")(f"{folder}/scores.{kind}")
    read = load_dataset(kind, data_files=f"{folder}/scores.{kind}", split="train", cache_dir=f"{folder}/cache")
    back[kind] = read["score"][:]
    print(f"{kind + ':':8}", back[kind])
assert back["parquet"] == numbers
assert all(abs(one - two) <= 1e-12 * two for one, two in zip(back["csv"], numbers)), "CSV changes them too now"
assert back["json"] != numbers, "JSON keeps the numbers now"
assert back["json"][3] == back["json"][4] == 0 and back["json"][6] > 0, "zeros are at other places now"
assert back["json"] != sorted(back["json"], reverse=True), "the order is kept now"
PY
