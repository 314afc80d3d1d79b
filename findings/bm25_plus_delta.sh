#!/usr/bin/env bash
# rank_bm25 and bm25s: the delta of BM25+ has no effect on any ranking, whatever its value.
#
# Expected: BM25+ was made for long documents. A long text that holds a query word gets almost nothing for it from
# BM25, and may fall behind one that does not hold it. BM25+ adds delta for each query word that the document holds,
# which is a floor for "present at all" (Lv and Zhai, 2011: the sum runs over the words of the query that are in the
# document). A larger delta moves long texts with more of the words up.
#
# What happens: both packages add idf * delta for each query word to every document, whether it holds the word or not.
# So all scores of a query rise by one number, and the ranking is that of delta=0: plain BM25 with another idf. 0, 1
# and 100 give the same order. The remedy is missing just where it was wanted. bm25s even stores what an absent word
# is worth, and adds it back. Both say that delta is a parameter to set. The formula is often printed without the
# condition, which gives just this.
#
# Versions: rank_bm25 0.2.2, bm25s 0.3.16, numpy 2.4.6 (Python 3.11). Source: BM25Plus.get_scores in rank_bm25.py;
# nonoccurrence_array in bm25s/__init__.py and scoring.py. The script ranks with four deltas in both packages and by
# the formula of the paper, and fails if delta changes an order of the packages.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet rank_bm25==0.2.2 bm25s==0.3.16 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
from importlib.metadata import version

import bm25s
import numpy as np
from rank_bm25 import BM25Plus

for name in ("rank_bm25", "bm25s"):
    print(name, version(name))
random = np.random.default_rng(0)
filler = [f"w{number}" for number in range(500)]


def document(length, *words):
    return [*words, *random.choice(filler, size=length - len(words)).tolist()]


documents = [document(3000, "roof", "lease"), document(100, "roof", "roof"), document(100, "lease")]
documents += [document(200) for _ in range(20)]
query = ["roof", "lease"]
lengths = np.array([len(words) for words in documents])


def paper(delta, k1=1.5, b=0.75):
    scores = np.zeros(len(documents))
    for word in query:
        counts = np.array([words.count(word) for words in documents])
        idf = np.log((len(documents) + 1) / (counts > 0).sum())
        weight = counts * (k1 + 1) / (k1 * (1 - b + b * lengths / lengths.mean()) + counts)
        scores += idf * (weight + delta * (counts > 0))
    return scores


def fast(delta):
    index = bm25s.BM25(method="bm25+", delta=delta)
    index.index(documents, show_progress=False)
    return index.get_scores(query)


ways = {"rank_bm25": lambda delta: BM25Plus(documents, delta=delta).get_scores(query), "bm25s": fast, "paper": paper}
print("document 0: 3000 words, both query words once; 1: 100 words, one of them twice; 2: 100 words, the other once")
orders, rises = {}, {}
for name, score in ways.items():
    orders[name] = []
    start = score(0)
    for delta in (0, 1, 2, 100):
        scores = score(delta)
        orders[name].append(np.argsort(-scores, kind="stable")[:3].tolist())
        rises[name] = np.ptp(scores - start)
        shown = np.round(scores[:4].astype(float), 2).tolist()
        print(f"{name}, delta={delta}: order {orders[name][-1]}, scores {shown}")
assert orders["paper"][0] != orders["paper"][-1]
for name in ("rank_bm25", "bm25s"):
    assert all(order == orders[name][0] for order in orders[name]), f"delta matters in {name} now"
    assert rises[name] < 1e-3 < rises["paper"], f"documents rise by different amounts in {name} now"
PY
