#!/usr/bin/env bash
# transformers: a newly initialised head on a "disk" device map loads without an error and cannot run.
#
# Expected: from_pretrained(device_map=...) either initialises a layer that the checkpoint lacks, as it does without a map
# and as its report says ("newly initialized"), or refuses the map when it loads.
#
# What happens: the layer is mapped to the disk, and nothing is written there for it: offloaded weights are looked up in the
# checkpoint's own files. Loading reports success. The first forward that reaches the layer ends in a KeyError with the
# weight's name. With the layer mapped to "cpu" the same model runs.
#
# Versions: transformers 5.23.0, accelerate 1.15.0, torch 2.13.0 on a CPU.
# The script loads a BERT encoder from a masked-language-model checkpoint, which has no pooler, and fails if the forward works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
FOLDER="$folder" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import os

import accelerate
import torch
import transformers
from transformers import AutoModel, BertConfig, BertForMaskedLM

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
place = os.environ["FOLDER"]
config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
BertForMaskedLM(config).save_pretrained(f"{place}/checkpoint")
ids = torch.ones(1, 3, dtype=torch.long)
print("transformers", transformers.__version__, "accelerate", accelerate.__version__)
outcomes = {}
for pooler in ("cpu", "disk"):
    where = {"embeddings": "disk", "encoder": "disk", "pooler": pooler}
    model = AutoModel.from_pretrained(f"{place}/checkpoint", device_map=where, offload_folder=f"{place}/{pooler}")
    try:
        with torch.no_grad():
            outcomes[pooler] = f"vector of {model(ids).pooler_output.shape[1]} numbers"
    except KeyError as error:
        outcomes[pooler] = f"KeyError {error}"
    print(f"new pooler on {pooler}: loaded; forward: {outcomes[pooler]}")
assert outcomes["cpu"].startswith("vector")
assert outcomes["disk"].startswith("KeyError"), "the forward now works"
PY
