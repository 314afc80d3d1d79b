#!/usr/bin/env bash
# voyager: in an inner product index, get_distance(a, b) is not the distance that query() reports for the same two
# vectors.
#
# Expected: get_distance "gets the distance between two provided vectors": for Space.InnerProduct this is 1 - a.b, the
# number that query() returns. It is so for Euclidean and Cosine. A function that reads leaves the index as it is.
#
# What happens: an inner product index keeps one hidden coordinate for each vector: the square root of M*M - |v|*|v|,
# where M is the greatest norm seen so far. A query has 0 there, so query() is right. get_distance gives the
# coordinate to both vectors, cuts it to a whole number (size_t), and multiplies them into the result. The order of
# neighbours is another one then. The function also raises M, which stays: one call with a longer vector changes all
# later results for other pairs.
#
# Versions: voyager 2.2.3, numpy 2.4.6 (Python 3.11). Source: TypedIndex::getDistance in cpp/src/TypedIndex.h of
# voyager. The script compares both for three vectors, and fails if they agree, or if a call no longer changes later
# ones.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet voyager==2.2.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
from voyager import Index, Space

print("voyager", version("voyager"), "numpy", version("numpy"))
vectors = np.array([[3, 4], [2, 0], [1, 1]], dtype=np.float32)
question, long = np.array([1, 0], dtype=np.float32), np.array([100, 0], dtype=np.float32)
seen = {}
for space in (Space.Euclidean, Space.Cosine, Space.InnerProduct):
    index = Index(space, num_dimensions=2)
    index.add_items(vectors)
    names, distances = index.query(question, k=3)
    told = [index.get_distance(question, vectors[name]) for name in names]
    found = dict(zip(names.tolist(), np.round(distances.astype(float), 3).tolist()))
    print(f"{space}: query() finds {found}; get_distance: {np.round(told, 3).tolist()}")
    seen[str(space)] = np.allclose(distances, told, atol=1e-5)
exact = (1 - vectors[names] @ question).tolist()
print("inner product, 1 - a.b:", exact)
index.get_distance(long, long)
after = [index.get_distance(question, vectors[name]) for name in names]
again = index.query(question, k=3)[1].tolist()
print(f"after get_distance of a vector of length 100 with itself: {after}; query(): {again}")
assert np.allclose(distances, exact) and np.allclose(again, exact)
assert seen.pop("Space.InnerProduct") is False, "get_distance and query() agree on inner products now"
assert all(seen.values()), "get_distance and query() disagree in another space too now"
assert told != after, "get_distance leaves the index as it is now"
assert np.argmin(told) != np.argmin(distances), "both name the same nearest vector now"
PY
