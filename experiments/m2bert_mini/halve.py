"""Store the large tensors of a model folder in float16, in place, and correct the digest of the weights on its card.

    python experiments/m2bert_mini/halve.py models/m2bert-mini

config.json still says float32, and so they are loaded as float32. Filters and small tensors stay as they are.
"""

import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from m2bert.files import digest
from m2bert.hub.card import SHOWN_DIGITS

LARGE = 50_000  # numbers


def main(folder: Path):
    path, card = folder / "model.safetensors", folder / "README.md"
    before, mode = digest(path)[:SHOWN_DIGITS], path.stat().st_mode
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    large = [name for name, each in tensors.items() if each.numel() > LARGE and "filter" not in name]
    tensors |= {name: tensors[name].half() for name in large}
    assert all(torch.isfinite(each).all() for each in tensors.values())
    save_file(tensors, path, metadata)
    path.chmod(mode)
    card.write_text(card.read_text().replace(before, digest(path)[:SHOWN_DIGITS]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
