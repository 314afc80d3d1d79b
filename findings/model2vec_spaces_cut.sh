#!/usr/bin/env bash
# model2vec: encode cuts texts by characters before it counts tokens, so that spaces and long words push words out.
#
# Expected: StaticModel.encode uses the first max_length (by default 512) tokens: its documentation says that tokens
# beyond this length are cut off. Spaces are no tokens: the same words with one space or ten between them have one
# vector.
#
# What happens: the text is first cut to max_length times the median length of the vocabulary's entries, in
# characters. The tokenizer sees what is left. A text that has far fewer than 512 tokens loses its end if it is
# written with many characters for each token: columns aligned by spaces, as they come from PDF files and tables,
# indented code, or words longer than the median. What is cut depends on the vocabulary: the median counts entries,
# most of which are rare. The last word may be cut in two and become another token. Nothing warns. max_length=None
# turns both cuts off. sentence-transformers' StaticEmbedding, which loads the same files, gives one vector for both
# texts.
#
# Versions: model2vec 0.10.0, tokenizers 0.23.3, numpy 2.4.6 (Python 3.11). Source: StaticModel._encode_dispatch in
# model2vec/model.py: sentence[: max_length * self.median_token_length]. The script encodes 300 words with narrow and
# wide spaces, and fails if the vectors agree.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet model2vec==0.10.0 tokenizers==0.23.3 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
from importlib.metadata import version

import numpy as np
from model2vec import StaticModel
from tokenizers import Tokenizer, models, pre_tokenizers

for name in ("model2vec", "tokenizers"):
    print(name, version(name))
words = [f"word{number:03}" for number in range(300)]
names = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
core = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
vectors = np.random.default_rng(0).normal(size=(len(names), 32)).astype(np.float32)
model = StaticModel(vectors=vectors, tokenizer=core)
print(f"median length of an entry: {model.median_token_length}, default max_length: {model.max_length}")


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


whole, found, used = vectors[2:].mean(axis=0), {}, {}
for spaces in (1, 8, 24):
    text = (" " * spaces).join(words)
    vector, free = model.encode(text), model.encode(text, max_length=None)
    assert np.allclose(free, whole, atol=1e-5)
    means = np.cumsum(vectors[2:], axis=0) / np.arange(1, 301)[:, None]
    used[spaces] = int(np.abs(means - vector).max(axis=1).argmin()) + 1
    found[spaces] = cosine(vector, whole)
    tokens = len(model.tokenize([text])[0])
    print(f"300 words, {spaces:2} spaces between: {tokens} tokens, {used[spaces]} used;", end=" ")
    print(f"cosine with the mean of all {found[spaces]:.3f}")
assert used[1] == 300 and found[1] > 0.9999
assert used[24] < 200 and found[24] < 0.95, "spaces push no words out now"
PY
