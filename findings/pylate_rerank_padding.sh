#!/usr/bin/env bash
# PyLate: the score that rank.rerank gives a document depends on how long the other documents are.
#
# Expected: a late interaction score adds, for each query token, the greatest product with a token of the document. It
# is a function of these two. rerank takes lists of matrices with any number of rows, so their lengths are its own
# matter.
#
# What happens: rerank pads the matrices of one query with rows of zeros to the longest, and scores them without a
# mask. A row of zeros has the product 0 with everything. So for each query token whose products with a short document
# are all negative, the document gets 0 instead. Scores rise when a longer document stands beside it. The documents
# that match worst gain most: short texts about something else pass longer ones that match a little. A document alone,
# or the longest one, has its true score, so scores of two calls cannot be compared. The remedy at hand,
# colbert_scores with documents_mask, changes nothing: it multiplies the products by the mask, which makes zeros of
# padding again; the training losses do so too. ColBERT's own code gives padding -9999. A trained model has few maxima
# below 0, so its errors are smaller than those below, which show the rule. The documentation of rerank does not
# mention padding.
#
# Versions: pylate 1.6.0, sentence-transformers 5.3.0, torch 2.13.0 on a CPU (Python 3.11). Source: rerank in
# pylate/rank/rank.py: pad_sequence with 0, then colbert_scores; and scores * documents_mask in
# pylate/scores/colbert.py. The script ranks by hand and by rerank, and fails if they agree.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet pylate==1.6.0 sentence-transformers==5.3.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
from importlib.metadata import version

import torch
from pylate import rank
from pylate.scores import colbert_scores

print("pylate", version("pylate"), "sentence-transformers", version("sentence-transformers"))


def rows(*values):
    return torch.nn.functional.normalize(torch.tensor(values), dim=-1)


query = rows([1.0, 0.0], [0.0, 1.0])
documents = {
    "short": rows([-1.0, 0.1]),
    "middle": rows([-1.0, -0.2], [0.1, -1.0]),
    "long": rows([-1.0, -0.3], [0.0, -1.0], [-1.0, -1.0]),
}
true = {name: round((query @ rows_.T).amax(dim=1).sum().item(), 3) for name, rows_ in documents.items()}
print("by hand:", true)
seen = []
for names in (["short"], ["short", "middle"], ["short", "middle", "long"]):
    given = rank.rerank([names], [query], [[documents[name] for name in names]])[0]
    seen.append({entry["id"]: round(entry["score"], 3) for entry in given})
    print(f"rerank of {len(names)}:", seen[-1])
padded = torch.nn.utils.rnn.pad_sequence(list(documents.values()), batch_first=True)
mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]])
masked = colbert_scores(query[None], padded, documents_mask=mask)[0].tolist()
print("colbert_scores with a mask:", dict(zip(documents, (round(score, 3) for score in masked))))
assert seen[0]["short"] == true["short"]
assert masked[0] > true["short"], "the mask takes padding out now"
assert seen[1]["short"] > true["short"], "other documents do not matter now"
assert true["middle"] > true["short"] and seen[1]["short"] > seen[1]["middle"], "the order is right now"
PY
