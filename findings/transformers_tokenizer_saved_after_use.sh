#!/usr/bin/env bash
# transformers: a tokenizer saves the length of its last call, and other readers of the file cut every text there.
#
# Expected: calling a tokenizer with max_length=8 concerns that call. save_pretrained writes the same tokenizer.json
# before and after it. The docstring of set_truncation_and_padding says that the settings are reset after the call.
#
# What happens: truncation and padding stay set in the Rust tokenizer after the call, and save_pretrained writes them
# into tokenizer.json. transformers ignores them when it calls the loaded tokenizer, so nobody notices there. All who
# read the file with the tokenizers library obey: Tokenizer.from_file cuts at 8 tokens and pads to 8, also in Rust and
# in servers. sentence-transformers' StaticEmbedding shares the Rust tokenizer of the object that it is given, so that
# one earlier call of the tokenizer is enough: it averages the first 8 words of a text of 1,000 and ignores the rest.
#
# Versions: transformers 5.23.0, tokenizers 0.23.3, sentence-transformers 6.2.0, torch 2.13.0 (Python 3.11). Source:
# TokenizersBackend.set_truncation_and_padding in transformers/tokenization_utils_tokenizers.py. It is issue 24441.
# The script saves before and after a call, counts tokens with each reader, and fails if the files agree.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3 sentence-transformers==6.2.0
FOLDER="$folder" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import json
import os
from importlib.metadata import version

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

for name in ("transformers", "tokenizers", "sentence-transformers"):
    print(name, version(name))
words = [f"w{number}" for number in range(1000)]
names = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
core = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
weights = np.random.default_rng(0).normal(size=(len(names), 16)).astype(np.float32)
text, mean, counts = " ".join(words), weights[2:].mean(axis=0), {}
for moment in ("before", "after"):
    path = f"{os.environ['FOLDER']}/{moment}"
    tokenizer.save_pretrained(path)
    with open(f"{path}/tokenizer.json") as file:
        content = json.load(file)
    own = len(AutoTokenizer.from_pretrained(path)(text)["input_ids"])
    other = len(Tokenizer.from_file(f"{path}/tokenizer.json").encode(text))
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    vector = model.encode(text)
    first = [bool(np.allclose(vector, near, atol=1e-5)) for near in (mean, weights[2:10].mean(axis=0))]
    counts[moment] = own, other, first
    print(f"saved {moment} the call: truncation {content['truncation']}")
    print(f"  tokens of a text of 1000 words: {own} by transformers, {other} by tokenizers", end="; ")
    print(f"StaticEmbedding gives the mean of {'all words' if first[0] else '8 words' if first[1] else 'others'}")
    tokenizer(["w1 w2"], padding="max_length", truncation=True, max_length=8)
assert counts["before"] == (1000, 1000, [True, False])
assert counts["after"] == (1000, 8, [False, True]), "the call leaves no trace now"
PY
