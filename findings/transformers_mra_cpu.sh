#!/usr/bin/env bash
# transformers, MRA (a long text encoder): on a CPU the attention is a tensor of zeros, and nothing says so.
#
# Expected: MraModel on a CPU computes what it computes on a GPU, only slower, or refuses. A vector of a word depends
# on the words around it.
#
# What happens: MRA's attention needs a CUDA kernel. If it is not loaded, the attention returns zeros in the shape of
# the query. Loading is tried, and its failure logged, only where CUDA is found, so on a CPU there is no message at
# all. The model loads, runs, and returns vectors that look fine; each depends on its own token and position alone.
# The weights of query, key and value do not matter, and training leaves them without a gradient. The attention mask
# does not matter either. The documentation of the model does not mention it.
#
# Versions: transformers 5.23.0, torch 2.13.0 on a CPU (Python 3.11). Source: mra2_attention, which begins with `if
# mra_cuda_kernel is None: return torch.zeros_like(query)`, in transformers/models/mra/modeling_mra.py. The script
# changes half of the words of a text, in MRA and in BERT, and fails if the vectors of MRA's other words move.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY' 2>&1
import torch
import transformers
from transformers import BertConfig, BertModel, MraConfig, MraModel

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
sizes = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
sizes["intermediate_size"] = 64
models = {
    "BERT": BertModel(BertConfig(**sizes, max_position_embeddings=256)),
    "MRA": MraModel(MraConfig(**sizes, max_position_embeddings=256)),
}
text = torch.randint(5, 100, (1, 256))
other = text.clone()
other[:, :128] = torch.randint(5, 100, (1, 128))
ones = torch.ones_like(text)
mask = ones.clone()
mask[:, :128] = 0
moved = {}
for name, model in models.items():
    model.eval()
    with torch.no_grad():
        first, changed, masked = (
            model(ids, attention_mask=seen)[0][:, 128:]
            for ids, seen in ((text, ones), (other, ones), (text, mask))
        )
    moved[name] = [(first - there).abs().max().item() for there in (changed, masked)]
    print(f"{name}: words 129 to 256 change by {moved[name][0]:.3g} if words 1 to 128 are others,", end=" ")
    print(f"by {moved[name][1]:.3g} if those are masked")
    model(text)[0].square().sum().backward()
    layer = model.encoder.layer[0].attention.self
    used = [part for part in ("query", "key", "value") if getattr(layer, part).weight.grad is not None]
    print(f"{name}: weights of the attention that have a gradient: {', '.join(used) or 'none'}")
    moved[name].append(len(used))
assert moved["BERT"][0] > 0 and moved["BERT"][1] > 0 and moved["BERT"][2] == 3
assert moved["MRA"] == [0, 0, 0], "MRA has an attention on a CPU now"
PY
