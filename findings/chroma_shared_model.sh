#!/usr/bin/env bash
# Chroma: two embedding functions with one model name are one model; the options of the second are ignored.
#
# Expected: SentenceTransformerEmbeddingFunction("folder", truncate_dim=2) gives vectors of two dimensions.
#
# What happens: loaded models are kept in a dictionary of the class, by name alone. If a function with that name exists in
# the process, later ones get its model: its truncate_dim, revision, device and prompts. The new function reports its own
# options in get_config() all the same.
#
# Versions: chromadb 1.5.9, sentence-transformers 6.2.0, torch 2.13.0 (Python 3.11). Source:
# chromadb/utils/embedding_functions/sentence_transformer_embedding_function.py.
# The script saves a model of static word vectors, makes two functions, and fails if the second truncates.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet chromadb==1.5.9 sentence-transformers==6.2.0
HOME="$folder" HF_HUB_OFFLINE=1 FOLDER="$folder" "$folder/venv/bin/python" - <<'PY'
import os
from importlib.metadata import version

import numpy as np
from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

for name in ("chromadb", "sentence-transformers", "torch"):
    print(name, version(name))
tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1, "dog": 2, "cow": 3}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
folder = os.environ["FOLDER"] + "/model"
vectors = StaticEmbedding(tokenizer, embedding_weights=np.eye(4, dtype=np.float32))
SentenceTransformer(modules=[vectors], device="cpu").save(folder)

first = SentenceTransformerEmbeddingFunction(folder)
second = SentenceTransformerEmbeddingFunction(folder, truncate_dim=2)
widths = [len(function(["cat dog"])[0]) for function in (first, second)]
print(f"dimensions: {widths}; the second says {second.get_config()['kwargs']}")
assert widths == [4, 4], "the second function has a model of its own now"
PY
