#!/usr/bin/env bash
# Lance: one full text index, and two readers of it that do not agree which words are searched.
#
# Expected: a Lance table is a format. Whether an index holds a word is settled when the index is made, and every reader of
# the table finds the same rows. Both LanceDB and pylance leave out English stop words by default.
#
# What happens: each package brings a stop list of its own, and applies it to the index that it makes and to every query.
# pylance 14 indexes and finds "not"; LanceDB 0.40 drops the word from the query, and finds nothing in the very same index.
# An index that LanceDB made has no "not" for either. No setting of the table says so, and nothing warns.
#
# Versions: lancedb 0.40.0, pylance 14.0.2, pyarrow (Python 3.11). Source: `Table.search(query_type="fts")` of lancedb,
# `LanceDataset.to_table(full_text_query=...)` and `create_scalar_index(..., "INVERTED")` of pylance.
# The script makes an index with each, asks both readers for "not" and for "valid", and fails if they agree on "not".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lancedb==0.40.0 pylance==14.0.2 pyarrow
FOLDER="$folder" "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import os
from importlib.metadata import version

import lance
import lancedb
from lancedb.index import FTS

print("lancedb", version("lancedb"), "pylance", version("pylance"))
folder = os.environ["FOLDER"] + "/db"
rows = [{"id": n, "text": f"clause {n} is " + ("not valid" if n % 2 else "valid")} for n in range(100)]
table = lancedb.connect(folder).create_table("texts", rows)


def found(word):
    by_lancedb = lancedb.connect(folder).open_table("texts").search(word, query_type="fts").limit(200).to_list()
    by_pylance = lance.dataset(folder + "/texts.lance").to_table(full_text_query=word, limit=200)
    return len(by_lancedb), by_pylance.num_rows


counts = {}
for maker in ("lancedb", "pylance"):
    if maker == "lancedb":
        table.create_index("text", config=FTS(), replace=True)
    else:
        lance.dataset(folder + "/texts.lance").create_scalar_index("text", "INVERTED", replace=True)
    for word in ("valid", "not"):
        counts[maker, word] = found(word)
        print(f"index made by {maker}, {word!r}: lancedb finds {counts[maker, word][0]} rows, pylance {counts[maker, word][1]}")
assert counts["lancedb", "valid"] == counts["pylance", "valid"] == (100, 100), "a common word is not found by both"
assert counts["pylance", "not"] == (0, 50), "both readers find the same rows now"
PY
