#!/usr/bin/env bash
# LlamaIndex: `transformations=[]` does not turn splitting off.
#
# Expected: VectorStoreIndex.from_documents(documents, transformations=[]) applies no transformation, so that one document
# gives one vector, as a long-context encoder needs it.
#
# What happens: an empty list counts as no argument. The default SentenceSplitter (chunks of 1,024 tokens) runs, and the
# encoder never sees a long document whole. VectorStoreIndex(nodes=documents) applies no transformation.
#
# Versions: llama-index-core 0.14.25 (Python 3.11). Source: llama_index/core/indices/base.py, from_documents.
# The script indexes one document of 5,000 words both ways, and fails if the empty list gives one node.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llama-index-core==0.14.25
HOME="$folder" "$folder/venv/bin/python" - <<'PY'
from importlib.metadata import version

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding

print("llama-index-core", version("llama-index-core"))
document = Document(text="word " * 5000)
embedding = MockEmbedding(embed_dim=4)
split = len(VectorStoreIndex.from_documents([document], embed_model=embedding, transformations=[]).docstore.docs)
whole = len(VectorStoreIndex([document], embed_model=embedding).docstore.docs)
print(f"from_documents(transformations=[]): {split} nodes; VectorStoreIndex(nodes): {whole} node")
assert split > 1, "an empty list of transformations is obeyed now"
assert whole == 1
PY
