#!/usr/bin/env bash
# torch.autocast: inside of one autocast block, weights that change are not seen; the model computes with the old
# ones.
#
# Expected: autocast chooses the type that an operation is computed in. A forward pass uses the weights as they are
# then. Whether the block is entered once around a loop, or anew for each pass, is a matter of style.
#
# What happens: autocast keeps the bfloat16 copy of each float32 weight that requires a gradient, until the outermost
# block ends. Nothing tells it that the weight has changed. So with the block around a training loop each step trains
# on the copy of the first one: the loss stands still, and the weights run away along one gradient. With the block
# around an evaluation, load_state_dict or a swap to averaged weights has no effect: two checkpoints get the same
# vectors, to the last bit. It is so under no_grad as well; under inference_mode, or for frozen weights, there is no
# copy. There is no warning. cache_enabled=False helps, and so does a block for each pass. The documentation says that
# a block should hold the forward pass and the loss, and that cache_enabled is about a weight cache; not what goes
# stale.
#
# Versions: torch 2.13.0 on a CPU (Python 3.11). Source: cached_cast in aten/src/ATen/autocast_mode.cpp, which looks a
# weight up by its TensorImpl alone. The script trains five steps and loads a second checkpoint both ways, and fails if
# both ways agree.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
from contextlib import nullcontext

import torch

print("torch", torch.__version__)
data = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
target = data.sum(dim=1, keepdim=True)


def autocast(**options):
    return torch.autocast("cpu", dtype=torch.bfloat16, **options)


def train(around, inside):
    torch.manual_seed(1)
    model, losses = torch.nn.Linear(16, 1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with around():
        for _ in range(5):
            optimizer.zero_grad()
            with inside():
                loss = torch.nn.functional.mse_loss(model(data).float(), target)
            loss.backward()
            optimizer.step()
            losses.append(round(loss.item(), 3))
    return losses


anew, around = train(nullcontext, autocast), train(autocast, nullcontext)
uncached = train(lambda: autocast(cache_enabled=False), nullcontext)
print("losses, a block for each step:       ", anew)
print("losses, one block around all:        ", around)
print("losses, the same, cache_enabled=False:", uncached)
torch.manual_seed(2)
model = torch.nn.Linear(16, 4)
checkpoints = [torch.nn.Linear(16, 4).state_dict() for _ in range(2)]
same = {}
for name, mode in (("no_grad", torch.no_grad), ("inference_mode", torch.inference_mode)):
    with mode(), autocast():
        vectors = []
        for checkpoint in checkpoints:
            model.load_state_dict(checkpoint)
            vectors.append(model(data))
    same[name] = torch.equal(*vectors)
    print(f"two checkpoints in one block, {name}: {'the same vectors' if same[name] else 'other vectors'}")
assert anew == uncached and anew[-1] < anew[0] / 2
assert len(set(around)) == 1, "weights that change are seen now"
assert same == {"no_grad": True, "inference_mode": False}, "a loaded checkpoint is seen now"
PY
