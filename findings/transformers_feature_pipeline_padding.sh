#!/usr/bin/env bash
# transformers, pipeline("feature-extraction"): with batch_size, the output holds rows of padding, and does not say
# so.
#
# Expected: the result for a text is one row for each of its tokens, [1, sequence_length, hidden_dimension] as the
# class says, and batch_size is about speed. np.mean(pipe(text), axis=1), which many recipes use, is the text's
# vector.
#
# What happens: texts of a batch are padded to the longest, and what comes back is the whole padded matrix: a text of
# 3 tokens beside one of 400 has 400 rows. The rows of the text are right, those of the padding are no zeros, but
# vectors like any other. The attention mask is not returned. The mean is then mostly padding: it is close to the
# vector of any other short text in the batch, and depends on the batch that a text falls into. The last row, which
# decoders are pooled by, is that of a padding token. There is no warning, and no option cuts the rows off. The
# documentation of pipelines discusses batch_size at length, as a question of speed and memory.
#
# Versions: transformers 5.23.0, tokenizers 0.23.3, torch 2.13.0 on a CPU (Python 3.11). Source: postprocess in
# transformers/pipelines/feature_extraction.py, which returns model_outputs[0]; pad_collate_fn in base.py. The script
# embeds three texts of 3, 3 and 400 tokens with a random BERT, alone and together, and fails if the shapes agree.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY' 2>/dev/null
from importlib.metadata import version

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, pipeline

for name in ("transformers", "torch"):
    print(name, version(name))
words = [f"w{number}" for number in range(400)]
names = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
core = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
torch.manual_seed(0)
sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
model = BertModel(BertConfig(vocab_size=len(names), **sizes)).eval()
pipe = pipeline("feature-extraction", model=model, tokenizer=tokenizer)
texts = ["w1 w2 w3", "w7 w8 w9", " ".join(words)]


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


shapes, close = {}, {}
for size in (1, 3):
    rows = [np.array(result) for result in pipe(texts, batch_size=size)]
    shapes[size] = [row.shape for row in rows]
    means = [row[0].mean(axis=0) for row in rows]
    if size == 1:
        alone, first = means, rows[0]
    close[size] = cosine(means[0], means[1])
    print(f"batch_size={size}: shapes {shapes[size]}; cosine of the means of the short texts {close[size]:.3f}")
own = cosine(alone[0], means[0])
print(f"cosine of the first text's mean alone and in the batch: {own:.3f}")
print("its 3 rows are the same in both:", np.allclose(first[0], rows[0][0, :3], atol=1e-4))
print("smallest norm of a row of padding:", round(float(np.linalg.norm(rows[0][0, 3:], axis=1).min()), 2))
assert np.allclose(first[0], rows[0][0, :3], atol=1e-4)
assert shapes[1] == [(1, 3, 64), (1, 3, 64), (1, 400, 64)]
assert shapes[3] == [(1, 400, 64)] * 3, "the rows of padding are cut off now"
assert own < 0.9 and close[3] > close[1] + 0.1
PY
