#!/usr/bin/env bash
# transformers, BERT's classifiers: gradient accumulation over N steps gives gradients N times too large.
#
# Expected: two steps of one text with gradient_accumulation_steps=2 change the weights as one step of two texts does, as the
# documentation of Trainer says.
#
# What happens: Trainer divides the loss of a step only if the model's forward cannot take `num_items_in_batch`. It decides by
# the signature: BertForSequenceClassification.forward has **kwargs, so Trainer leaves the division to the model. The
# model's loss is the mean over its own step and ignores the number. So the gradients of N steps are added, not averaged:
# the update of plain SGD is N times as long, and clipping and AdamW hide it in part.
#
# Versions: transformers 5.23.0, torch 2.13.0, accelerate 1.15.0 (Python 3.11, CPU). Source: Trainer.compute_loss,
# BertForSequenceClassification.forward. It is the same for tokens, choices and regression.
# The script takes one step of SGD both ways from one start, and fails if the updates are alike.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy
FOLDER="$folder" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import copy
import os

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
sizes = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
start = BertForSequenceClassification(
    BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3)
)
rows = [{"input_ids": torch.arange(1, 16) + 15 * n, "labels": torch.tensor(2 * n)} for n in range(2)]


def update(batch: int, steps: int) -> torch.Tensor:
    model = copy.deepcopy(start)
    options = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0, "max_steps": 1, "save_strategy": "no"}
    arguments = TrainingArguments(
        output_dir=os.environ["FOLDER"] + "/out", per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
        use_cpu=True, report_to="none", disable_tqdm=True, **options,
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    return model.classifier.weight.detach() - start.classifier.weight.detach()


whole, accumulated = update(2, 1), update(1, 2)
ratio = (accumulated.norm() / whole.norm()).item()
print(f"update of 2 accumulated steps of 1 text / update of 1 step of the 2 texts: {ratio:.3f}")
assert 1.99 < ratio < 2.01, "the ratio is not 2 now"
PY
