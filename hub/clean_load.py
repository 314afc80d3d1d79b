"""Load a model folder as a user without this package does: `python -P clean_load.py FOLDER`.

`m2bert push` runs this in a process of its own before it sends a folder. Nothing of this project can be imported here.
The exit code is 0, or 1 with the reason as the last line on stderr.
"""

import importlib.util
import json
import sys
from pathlib import Path

OURS = ("m2bert", "modeling_m2bert", "configuration_m2bert")
READS_TEXT = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "handler.py")
TEXTS = ["a river", "the bridge over a river"]


def forget_ours():
    """Make this project's packages impossible to import."""
    sys.modules.update(dict.fromkeys(OURS))


def main(folder: Path):
    """Load the folder by transformers, and by sentence-transformers if it has modules.json. Raise an exception if it
    does not load, tensors are missing or left over, or an output is not finite."""
    import torch
    import transformers

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = (config.get("architectures") or ["AutoModel"])[0]
    named = (auto for auto, cls in (config.get("auto_map") or {}).items() if cls.endswith(f".{architecture}"))
    loader = getattr(transformers, next(named, architecture), transformers.AutoModel)
    # sizes that differ are reported with their names below
    settings = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, report = loader.from_pretrained(folder, trust_remote_code=True, **settings)
    problems = {name: report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[name]}
    reads_text = any((folder / name).is_file() for name in READS_TEXT)
    if reads_text:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        vocabulary, size = tokenizer.get_vocab(), model.config.vocab_size
        if vocabulary.keys() <= set(tokenizer.all_special_tokens) or max(vocabulary.values()) >= size:
            problems["tokenizer"] = f"knows no words, or gives ids beyond the model's vocab_size={size}"
    if problems:
        raise ValueError(f"its files do not fit each other: {problems}")
    if not reads_text:
        return
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    if architecture.endswith("MultipleChoice"):
        batch = {name: rows[None] for name, rows in batch.items()}  # a question with two choices
    with torch.no_grad():
        outputs = [model.eval()(**batch)[0]]
    if (folder / "modules.json").exists() and importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
        outputs.append(encoder.encode(TEXTS, convert_to_tensor=True))
    if not all(output.isfinite().all() for output in outputs):
        raise ValueError("its output for ordinary texts holds NaN or infinite numbers")


if __name__ == "__main__":
    forget_ours()
    try:
        main(Path(sys.argv[1]))
    except Exception as error:  # foreign settings can fail in any way
        sys.exit("\n" + " ".join(f"{type(error).__name__}: {error}".split()))
