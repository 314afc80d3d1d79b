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
# Versions: llama-index-embeddings-huggingface 0.8.0, sentence-transformers 6.2.0, torch 2.13.0 (Python 3.11).
# Source: llama_index/embeddings/huggingface/base.py, __init__.
# The script saves a model of a random BERT with a prompt, loads it both ways, and fails if the vectors agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet llama-index-embeddings-huggingface==0.8.0 sentence-transformers==6.2.0 transformers==5.24.0
HOME="$folder" HF_HUB_OFFLINE=1 FOLDER="$folder" "$folder/venv/bin/python" - <<'PY'
import os
from importlib.metadata import version

import numpy as np
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

for name in ("llama-index-embeddings-huggingface", "sentence-transformers", "transformers", "torch"):
    print(name, version(name))
tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "query": 2, "cat": 3}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
folder = os.environ["FOLDER"] + "/"
PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", model_max_length=8).save_pretrained(folder + "bert")
sizes = dict(vocab_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
BertModel(BertConfig(**sizes)).save_pretrained(folder + "bert")
modules = [Transformer(folder + "bert"), Pooling(8)]
SentenceTransformer(modules=modules, prompts={"query": "query "}, device="cpu").save(folder + "model")

model = SentenceTransformer(folder + "model", device="cpu")
expected = model.encode_query("cat", normalize_embeddings=True)
found = HuggingFaceEmbedding(folder + "model", device="cpu").get_query_embedding("cat")
print(f"encode_query: {np.round(expected, 2)}; get_query_embedding: {np.round(found, 2)}")
remedy = HuggingFaceEmbedding(folder + "model", device="cpu", query_instruction="query ").get_query_embedding("cat")
assert np.allclose(remedy, expected, atol=1e-5)
assert not np.allclose(found, expected, atol=1e-2), "the saved prompt is kept now"
PY
