#!/usr/bin/env bash
# torch FSDP2: after a forward without gradients, model.zero_grad() leaves the gradients, and the next step doubles them.
#
# Expected: zero_grad() clears the gradients of the model's parameters at any time. A loop that calls model.zero_grad(),
# forward, backward gives the same gradients whether or not a validation forward ran in between.
#
# What happens: a forward under torch.no_grad() leaves the root module unsharded (nothing follows that would reshard it). Its
# parameters() are then the temporary whole tensors, which have no gradients; those of the sharded parameters stay, and
# backward adds to them. optimizer.zero_grad() is safe, since an optimizer holds the sharded parameters; so is calling
# module.reshard() after validation.
#
# Versions: torch 2.13.0, gloo, one process on a CPU. Source: torch/distributed/fsdp/_fully_shard.
# The script prints three gradients of the same batch, and fails if the third is no longer twice the first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
model = fully_shard(nn.Linear(2, 1, bias=False), mesh=init_device_mesh("cpu", (1,)))
sharded, x = model.weight, torch.ones(1, 2)


def step():
    model.zero_grad()
    model(x).sum().backward()
    return sharded.grad.full_tensor().tolist()


first, second = step(), step()
with torch.no_grad():
    model(x)  # validation
third = step()
print("torch", torch.__version__)
print("gradient of a step:                    ", first)
print("gradient of the same step again:       ", second)
print("gradient of the same, after validation:", third)
assert first == second == [[1.0, 1.0]]
assert third == [[2.0, 2.0]], "zero_grad() now clears them"
torch.distributed.destroy_process_group()
PY
