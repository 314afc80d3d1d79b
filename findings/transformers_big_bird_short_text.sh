#!/usr/bin/env bash
# transformers, BigBird: after one short text, the same object computes other vectors for every long text.
#
# Expected: a model in eval mode is a function. The vector of a long text does not depend on what was encoded before.
#
# What happens: BigBird's sparse attention needs more than (5 + 2 * num_random_blocks) * block_size tokens, 704 by
# default. For a shorter batch, forward switches the model to full attention, and does not switch back. So long texts
# get one vector before the first batch of short ones and another after it, at the price of full attention as well (n
# * n). The one warning names the change, not that it stays. Whoever embeds a short query after the documents of an
# index, or starts a service with a short text to warm it up, mixes two models.
# model.set_attention_type("block_sparse") restores the first one; model.config.attention_type says "block_sparse" all
# the time. The documentation advises full attention for texts below 1,024 tokens, and does not mention the switch.
#
# Versions: transformers 5.23.0, torch 2.13.0 on a CPU (Python 3.11). Source: BigBirdModel.forward, which calls
# self.set_attention_type("original_full"). BigBirdPegasus does the same. It was reported as issue 20031 in 2022. The
# script encodes a long text, a short one and the long one again, and fails if both vectors of it are alike.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import torch
import transformers
from transformers import BigBirdConfig, BigBirdModel

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
sizes["intermediate_size"] = 64
config = BigBirdConfig(**sizes, block_size=4, num_random_blocks=1, max_position_embeddings=512, initializer_range=0.5)
model = BigBirdModel(config).eval()
long, short = torch.randint(5, 100, (1, 256)), torch.randint(5, 100, (1, 8))


def embed(ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.nn.functional.normalize(model(ids).last_hidden_state.mean(1)[0], dim=0)


def show(when: str, vector: torch.Tensor) -> None:
    print(f"{when}: cosine with the first vector {first @ vector:.4f}; attention: {model.attention_type}", end="; ")
    print("config:", model.config.attention_type)


first = embed(long)
show("long text", first)
repeated = embed(long)
show("long text again", repeated)
embed(short)
after = embed(long)
show("long text after a short one", after)
model.set_attention_type("block_sparse")
restored = embed(long)
show("long text after set_attention_type", restored)
assert torch.equal(first, repeated) and torch.equal(first, restored)
assert first @ after < 0.999, "a short text no longer changes the vectors of long ones"
PY
