#!/usr/bin/env bash
# transformers, rope_type "dynamic": the vector of a text depends on the longest text that was encoded before it.
#
# Expected: "dynamic" (NTK) scaling chooses the rotary frequencies by the length of the input, so that each text has
# one vector, and a model in eval mode is a function.
#
# What happens: the frequencies are computed anew when an input is longer than all before, and are kept. They are
# reset only by an input that is shorter than the length of pretraining. Whatever lies between gets the frequencies of
# the longest text since the last reset. With a pretrained length of 512, a document of 1,000 tokens has one vector
# alone, another after a document of 4,000, and the first one again after a short query. sentence-transformers encodes
# the longest texts of a call first, so the others get theirs.
#
# Versions: transformers 5.23.0, torch 2.13.0 on a CPU (Python 3.11). Source: dynamic_frequency_update in
# transformers/modeling_rope_utils.py. Its comment names the two cases; the documentation of rope_parameters does not.
# Issue 25306 reported a stronger form in 2023; texts below the pretrained length have been right since. The script
# encodes one text in four situations with NomicBERT, and fails if its vectors are alike.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import torch
import transformers
from transformers import NomicBertConfig, NomicBertModel

print("transformers", transformers.__version__, "torch", torch.__version__)
sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
sizes["intermediate_size"] = 64
rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0}
short, middle, long = 64, 200, 800


def start(**scaling: dict) -> NomicBertModel:
    torch.manual_seed(0)
    config = NomicBertConfig(**sizes, max_position_embeddings=128, initializer_range=0.5, **scaling)
    return NomicBertModel(config).eval()


def embed(model: NomicBertModel, length: int) -> torch.Tensor:
    ids = torch.arange(length)[None] * 7 % 95 + 5
    with torch.no_grad():
        return torch.nn.functional.normalize(model(ids).last_hidden_state.mean(1)[0], dim=0)


vectors = {}
for name, scaling in (("default", {}), ("dynamic", {"rope_parameters": rope})):
    model = start(**scaling)
    alone = embed(model, middle)
    embed(model, long)
    later = embed(model, middle)
    embed(model, short)
    last = embed(model, middle)
    vectors[name] = alone, later, last
    print(f"rope {name}: a text of {middle} tokens, cosine with its vector alone:", end=" ")
    print(f"after one of {long} tokens {alone @ later:.4f}, after one of {short} tokens then {alone @ last:.4f}")
alone, later, last = vectors["default"]
assert torch.equal(alone, later) and torch.equal(alone, last)
alone, later, last = vectors["dynamic"]
assert torch.equal(alone, last), "the frequencies are not reset by a short text now"
assert alone @ later < 0.999, "a text has one vector now"
PY
