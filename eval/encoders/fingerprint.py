"""Digests of what decides a model's vectors: of the loaded model, and of the files in its folder."""

import hashlib
import inspect
import json
from pathlib import Path

from m2bert.files import digest, visible
from m2bert.records import installed_versions

PACKAGES = ("torch", "transformers", "tokenizers", "sentence-transformers")
# Of a configuration or a tokenizer: where it lies, and how long inputs may be (a store's key names that length).
IRRELEVANT = {"_name_or_path", "name_or_path", "is_local", "auto_map", "model_max_length", "transformers_version"}
NOT_THE_MODEL = {"training.json", "conversion.json"}  # how it was made
MODEL_FILES = ("*.safetensors", "*.json", "vocab.txt", "[0-9]*_*/*.safetensors", "[0-9]*_*/*.json")


def model_files(folder: Path | str) -> dict[str, str] | None:
    """Return the sha256 of each file of weights, settings and tokenizer by its name; None if there is no such folder.

    Publishing copies code anew, so it is left out.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    paths = [path for pattern in MODEL_FILES for path in visible(folder, pattern)]
    wanted = [path for path in paths if path.is_file() and path.name not in NOT_THE_MODEL]
    return {path.relative_to(folder).as_posix(): digest(path) for path in wanted}


def model_fingerprint(model, code: bool = True) -> str:
    """Return the sha256 of a loaded `SentenceTransformer`, so that stored vectors are never taken for another model's.

    It covers weights and dtypes, configuration, tokenizer and prompts. It does not cover the model's folder and its
    longest input.

    Args:
        code: also cover the versions of PACKAGES and all other code of the model.
    """
    import torch

    sha256 = hashlib.sha256()

    def add(part: bytes) -> None:
        sha256.update(len(part).to_bytes(8, "big"))
        sha256.update(part)

    modules = [(name, type(module).__name__, _config(module)) for name, module in model.named_children()]
    settings = [
        installed_versions(PACKAGES) if code else {},
        model.prompts,
        model.default_prompt_name,
        model.truncate_dim,
        modules,
    ]
    add(json.dumps(settings, sort_keys=True, default=str).encode())
    add(json.dumps(_tokenizer(model.tokenizer), sort_keys=True, default=str).encode())
    # Every Python file of the folders from which the model's classes come, but for versioned packages.
    versioned = {name.replace("-", "_") for name in PACKAGES}
    foreign = {type(module) for module in model.modules() if type(module).__module__.split(".")[0] not in versioned}
    folders = {Path(inspect.getfile(cls)).parent for cls in foreign}
    files = [path for folder in folders for path in folder.glob("*.py")] if code else []
    for path in sorted(files, key=lambda path: path.name):
        add(path.name.encode())
        add(path.read_bytes())
    for name, tensor in sorted(model.state_dict().items()):
        add(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        add(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()


def _config(module) -> dict:
    """Return a module's configuration, and that of the transformers model inside it."""
    config = module.get_config_dict() if hasattr(module, "get_config_dict") else {"repr": repr(module)}
    inner = getattr(getattr(module, "model", None), "config", None)
    inner = inner.to_dict() if inner is not None else {}
    inner = {key: value for key, value in inner.items() if key not in IRRELEVANT}
    return {key: value for key, value in config.items() if key != "max_seq_length"} | {"model": inner}


def _tokenizer(tokenizer) -> list:
    """Return a tokenizer's settings without truncation and padding, which are states of the last call."""
    shell = ("padding_side", "truncation_side", "model_input_names", "special_tokens_map")
    shell = [getattr(tokenizer, name, None) for name in shell]
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        return [json.loads(backend.to_str()) | {"truncation": None, "padding": None}, shell]
    settings = {}
    for key, value in getattr(tokenizer, "init_kwargs", {}).items():
        if key not in IRRELEVANT and not (isinstance(value, str) and Path(value).is_absolute()):
            settings[key] = value
    vocabulary = getattr(tokenizer, "get_vocab", dict)()
    return [{"type": type(tokenizer).__name__, "vocabulary": vocabulary, **settings}, shell]
