#!/usr/bin/env bash
# LlamaIndex: HuggingFaceEmbedding replaces the prompts that a model was saved with by empty ones.
#
# Expected: a sentence-transformers model saved with prompts={"query": "query: "} embeds a query with that prompt, as
# encode_query() does.
#
# What happens: without `query_instruction`, HuggingFaceEmbedding loads the model with the prompt "" under "query" and
# "text". The saved prompt is lost without a warning, and queries get other vectors than in training. Texts are embedded
# under the prompt name "text", so a saved "document" prompt is not used either. The remedy is query_instruction="query: ".
#
# Versions: llama-index-embeddings-huggingface 0.8.0, sentence-transformers 6.2.0, torch 2.13.0 (Python 3.11). Source:
# llama_index/embeddings/huggingface/base.py, __init__.
# The script saves a model of four static word vectors with a prompt, loads it both ways, and fails if the vectors agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet llama-index-embeddings-huggingface==0.8.0 sentence-transformers==6.2.0
HOME="$folder" HF_HUB_OFFLINE=1 FOLDER="$folder" "$folder/venv/bin/python" - <<'PY'
import os
from importlib.metadata import version

import numpy as np
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

for name in ("llama-index-embeddings-huggingface", "sentence-transformers", "torch"):
    print(name, version(name))
words = {word: number for number, word in enumerate(["[UNK]", "query", "cat", "dog"])}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
vectors = StaticEmbedding(tokenizer, embedding_weights=np.eye(4, dtype=np.float32))
folder = os.environ["FOLDER"] + "/model"
SentenceTransformer(modules=[vectors], prompts={"query": "query "}, device="cpu").save(folder)

model = SentenceTransformer(folder, device="cpu")
expected = model.encode_query("cat", normalize_embeddings=True)
found = HuggingFaceEmbedding(folder, max_length=8, device="cpu").get_query_embedding("cat")
print(f"encode_query: {np.round(expected, 3)}; get_query_embedding: {np.round(found, 3)}")
remedy = HuggingFaceEmbedding(folder, max_length=8, device="cpu", query_instruction="query ").get_query_embedding("cat")
assert np.allclose(remedy, expected)
assert not np.allclose(found, expected), "the saved prompt is kept now"
PY
