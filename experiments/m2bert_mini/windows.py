"""Measure a student's cosines to its teacher on held-out text that it reads in windows of several lengths.

    python experiments/m2bert_mini/windows.py --model runs/layers-long --prepared FOLDER --output F.json

FOLDER is what `m2bert train align prepare=FOLDER` wrote. Its stretches are the same in all windows. What lies beyond a
stretch in its window is all that differs.
"""

import argparse
import json
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoModel

from m2bert.eval.statistics import align
from m2bert.train.align_run import evaluate
from m2bert.train.alignment import AlignedTexts, StretchEncoder, Windows
from m2bert.train.tokenizer import load_tokenizer
from m2bert.train.verified_files import read_prepared

WINDOWS, BATCH_TOKENS = (256, 512, 2048, 8192), 16384


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    student = StretchEncoder(AutoModel.from_pretrained(options.model).eval())
    texts = AlignedTexts(**read_prepared(options.prepared, "align")[0]["held_out"])
    found, accelerator = [], Accelerator(mixed_precision="bf16")
    for tokens in WINDOWS:
        windows = Windows(texts, tokens, (tokenizer.cls_token_id, tokenizer.sep_token_id))
        batches = [windows.batch(one) for one in windows.cut(windows.epoch(None), BATCH_TOKENS)]
        found.append({"model": options.model.name, "window": tokens} | evaluate(accelerator, batches, student))
    rows = [[str(row["window"]), *(f"{row[key]:.3f}" for key in list(row)[2:])] for row in found]
    print(align(("window", *list(found[0])[2:]), rows))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
