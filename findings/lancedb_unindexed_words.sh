#!/usr/bin/env bash
# LanceDB: full text search ranks documents that were added after the index by other statistics, until optimize().
#
# Expected: rows that the full text index does not hold yet are slower to search, and their BM25 scores are those that they
# will have in the index. The documentation says that unindexed rows are searched by brute force.
#
# What happens: indexed and unindexed rows are scored with different statistics (number of documents, frequency of words,
# mean length) and put into one ranking. A word that is rare in one part and common in the other weighs differently in
# both. optimize() changes the ranking, although no row has changed. Deleted rows stay in the statistics in the same way.
#
# Versions: lancedb 0.40.0, pyarrow (Python 3.11). Source: `Table.search(query_type="fts")`, `Table.optimize`.
# The script indexes 100 texts, adds 100 more, asks before and after optimize(), and fails if the scores agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lancedb==0.40.0 pyarrow
FOLDER="$folder" "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import os
from importlib.metadata import version

import lancedb
from lancedb.index import FTS

print("lancedb", version("lancedb"))
# "lease" is rare among the first texts and in all of the later ones; "roof" is the other way round.
first = [{"id": n, "text": f"roof repair number {n}" + (" lease" if n == 0 else "")} for n in range(100)]
later = [{"id": n, "text": f"lease contract number {n}" + (" roof" if n == 100 else "")} for n in range(100, 200)]
table = lancedb.connect(os.environ["FOLDER"] + "/db").create_table("texts", first)
table.create_index("text", config=FTS(stem=False))
table.add(later)


def scores(query):
    rows = table.search(query, query_type="fts").limit(200).to_list()
    return {row["id"]: round(row["_score"], 3) for row in rows}


before = {query: scores(query) for query in ("lease", "roof")}
table.optimize()
after = {query: scores(query) for query in ("lease", "roof")}
for query in before:
    for number in (1, 0, 100, 101):
        if number in after[query]:
            print(f"{query!r} in text {number}: {before[query].get(number)} before optimize(), {after[query][number]} after")
assert set(before["lease"]) == set(after["lease"]), "before optimize(), other texts were found"
assert before != after, "unindexed rows get the scores now that they have in the index"
PY
