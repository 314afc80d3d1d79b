"""Digests of a model folder's files: what a score was measured on, for whoever publishes it."""

from pathlib import Path

from m2bert.files import digest, visible

NOT_THE_MODEL = {"training.json", "conversion.json"}  # how it was made


def model_files(folder: Path | str) -> dict[str, str] | None:
    """Return the sha256 of every file of weights, settings and tokenizer by its name; None if `folder` is none.

    Code is not among them: publishing copies it anew, and the model's fingerprint covers it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    found = {}
    for pattern in ("*.safetensors", "*.json", "vocab.txt", "[0-9]*_*/*.safetensors", "[0-9]*_*/*.json"):
        for path in visible(folder, pattern):
            if path.is_file() and path.name not in NOT_THE_MODEL:
                found[path.relative_to(folder).as_posix()] = digest(path)
    return found
