"""Load an exported folder as a stranger would: `python clean_process.py FOLDER`.

Nothing of this project can be imported here, as on a machine that has only transformers and sentence-transformers.
"""

import importlib.abc
import sys

import torch

OURS = {"m2bert", "modeling_m2bert", "configuration_m2bert"}


class Blocker(importlib.abc.MetaPathFinder):
    """Makes this project's packages impossible to import."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OURS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main(folder: str):
    sys.meta_path.insert(0, Blocker())
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    texts = ["Compute the weighted mean of the samples.", "Open a file and return its lines."]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        pooled = model(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
    encoder = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    vectors = encoder.encode(texts, convert_to_tensor=True)
    difference = (torch.nn.functional.normalize(pooled, dim=1) - vectors).abs().max().item()
    print(f"  AutoModel: {type(model).__module__}")
    print(f"  SentenceTransformer: {vectors.shape[1]} dimensions, up to {encoder.max_seq_length} tokens")
    print(f"  largest difference between their vectors: {difference:.1e}")
    if difference > 1e-5:
        raise SystemExit("the two ways of loading disagree")


if __name__ == "__main__":
    main(sys.argv[1])
