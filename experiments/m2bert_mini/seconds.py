"""Time one document of 8,192 tokens, tokenizing included, for models side by side: seconds of CPU time of one thread.

    OMP_NUM_THREADS=1 python experiments/m2bert_mini/seconds.py --text ../shared/data/pretrain/encyclopedic \\
        --output F.json MODEL...

All take turns, in float32 and in bfloat16. A model that reads the document whole gives 16 late chunks, any other the
vectors of its chunks of 256 tokens. Shown are the median, and its ratio to the last model with the lowest and highest.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from m2bert.eval.encoders.policies import BestChunk, LateChunk
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.eval.statistics import align
from m2bert.train.text.sources import parse_source

TOKENS, ROUNDS = 8192, 9


def document(encoder: SentenceTransformerEncoder, text: str) -> str:
    """Return the beginning of the text that has TOKENS tokens, special tokens included."""
    spans = encoder.token_spans([text])[0]
    return text[: spans[TOKENS - 3, 1]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", required=True)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = parse_source({"path": arguments.text}, "--text", lambda path: path)
    texts = "\n\n".join(text for text, _ in zip(source.splits()["validation"], range(20), strict=False))
    systems = {}
    for name in arguments.models:
        for dtype in (torch.float32, torch.bfloat16):
            encoder = SentenceTransformerEncoder(name)
            encoder.model.to(dtype)
            whole = not encoder.parts_problem and encoder.max_tokens >= TOKENS
            systems[Path(name).name, str(dtype).removeprefix("torch.")] = encoder, whole
    text = document(next(encoder for encoder, whole in systems.values() if whole), texts)
    seconds = {key: [] for key in systems}
    for number in range(ROUNDS + 1):
        for key, (encoder, whole) in systems.items():
            begin = time.process_time()
            (LateChunk(document=1) if whole else BestChunk(tokens=256)).embed(encoder, [text])
            if number:  # the first is not measured
                seconds[key].append(time.process_time() - begin)
    last, rows, found = Path(arguments.models[-1]).name, [], []
    for (name, dtype), measured in seconds.items():
        ratios = np.array(seconds[last, dtype]) / np.array(measured)
        found.append({"model": name, "dtype": dtype, "seconds": float(np.median(measured))})
        found[-1] |= {"ratio": float(np.median(ratios)), "lowest": float(ratios.min()), "highest": float(ratios.max())}
        shown = f"{found[-1]['ratio']:.2f}x ({found[-1]['lowest']:.2f} to {found[-1]['highest']:.2f})"
        rows.append([name, dtype, f"{found[-1]['seconds']:.3f}", shown])
    print(align(("model", "dtype", "seconds", f"times as fast as {last}"), rows))
    if arguments.output:
        content = {"tokens": TOKENS, "rounds": ROUNDS, "processor": platform.processor(), "measured": found}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
