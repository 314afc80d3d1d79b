"""Whether a folder is complete: everything that loading it from the Hub would ask for is in it, and whole."""

import ast
import json
import re
from pathlib import Path, PurePosixPath

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from .checkpoint import ADAPTER_CONFIG, read_json
from .outgoing import Outgoing
from .private import without_private

INDEX = "model.safetensors.index.json"
EXPORT = "write the folder anew with `m2bert export`"


def check_outgoing(outgoing: Outgoing):
    """Check a folder as a stranger would load it.

    Raises:
        ValueError: a file is missing, cut short or damaged, code imports what is not there, or an adapter's base is not
            on the Hub.
    """
    try:
        _check(outgoing)
    except (TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(
            f"{outgoing.folder} has JSON of a form that loading does not know ({error}); {EXPORT}"
        ) from error


def _check(outgoing: Outgoing):
    if outgoing.kind == "model":
        check_weights(outgoing, "model.safetensors", INDEX)
    elif outgoing.kind == "adapter":
        check_weights(outgoing, "adapter_model.safetensors")
    require(outgoing, "README.md", "the card; " + EXPORT)
    for name, path in outgoing.files.items():
        if name.endswith(".json"):
            check_json(path)
        elif name.endswith(".py"):
            check_imports(outgoing, name)
    if outgoing.kind == "model":
        check_auto_map(outgoing)
        check_modules(outgoing)
    elif outgoing.kind == "adapter":
        check_base(outgoing)
    elif outgoing.sdk in ("gradio", "streamlit"):
        require(outgoing, outgoing.metadata.get("app_file") or "app.py", "the Space's program")
    if "training.json" in outgoing.files:
        check_record(outgoing.files["training.json"])


def require(outgoing: Outgoing, name: str, what: str):
    if name not in outgoing.files:
        raise ValueError(f"{outgoing.folder} lacks {name}: {what}")


def check_weights(outgoing: Outgoing, single: str, index: str | None = None):
    """Every safetensors file can be read to its end, and those that loading looks for are there."""
    names = {path: tensor_names(file) for path, file in outgoing.files.items() if path.endswith(".safetensors")}
    if index in outgoing.files:
        weight_map = read_json(outgoing.files[index]).get("weight_map") or {}
        for tensor, shard in weight_map.items():
            if tensor not in names.get(shard, ()):
                raise ValueError(f"{outgoing.folder / index} names {shard} for {tensor}, which is not there; {EXPORT}")
    if single not in names and not (index in outgoing.files and weight_map):
        raise ValueError(f"{outgoing.folder} has no {single}, the weights; {EXPORT}")


def tensor_names(file: Path) -> set[str]:
    try:
        with safe_open(file, "np") as tensors:  # reads the header, and compares it with the file's length
            return set(tensors.keys())
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut short ({error}); copy or export it again") from error


def check_json(file: Path):
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no valid JSON ({error}); correct it") from error


def check_imports(outgoing: Outgoing, name: str):
    """Relative imports lead to files of the folder; in a model, which the Hub's loader wants flat, to siblings."""
    try:
        tree = ast.parse(outgoing.files[name].read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{outgoing.folder / name} is no valid Python ({error}); correct it") from error
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        written = "." * node.level + (node.module or "")
        if outgoing.kind != "space" and (node.level > 1 or not node.module or "." in node.module):
            raise ValueError(f"{outgoing.folder / name} imports from {written!r}; the Hub's loader only finds modules "
                             "beside it, written `from .module import name`")  # fmt: skip
        base = PurePosixPath(name).parents
        target = base[min(node.level, len(base)) - 1] / (node.module or "__init__").replace(".", "/")
        if not {f"{target}.py", f"{target}/__init__.py"} & outgoing.files.keys():
            raise ValueError(f"{outgoing.folder / name} imports from {written!r}, which is not in the folder; {EXPORT}")


def check_auto_map(outgoing: Outgoing):
    """The classes that the configurations name are in modules of the folder; an M2-BERT names some."""
    config = read_json(outgoing.folder / "config.json")
    if config.get("model_type") == "m2bert" and not config.get("auto_map"):
        raise ValueError(f"{outgoing.folder / 'config.json'} has no auto_map, so nobody could load it; {EXPORT}")
    for file in ("config.json", "tokenizer_config.json"):
        classes = (read_json(outgoing.files[file]).get("auto_map") or {}) if file in outgoing.files else {}
        if isinstance(classes, list):  # of an old tokenizer
            classes = {"AutoTokenizer": classes}
        for value in classes.values():
            for reference in filter(None, value if isinstance(value, list) else [value]):
                module = f"{reference.split('.')[0]}.py"
                if module not in outgoing.files:  # `org/other--module` is code of another repository, and not pinned
                    raise ValueError(f"{outgoing.folder / file} names {reference}, but {module} is missing; {EXPORT}")


def check_modules(outgoing: Outgoing):
    """What sentence-transformers reads: a vocabulary, and the settings and weights of every module."""
    files = outgoing.files
    if {"tokenizer_config.json", "handler.py"} & files.keys() and not {"tokenizer.json", "vocab.txt"} & files.keys():
        raise ValueError(f"{outgoing.folder} lacks tokenizer.json, without which every word is unknown; {EXPORT}")
    modules = json.loads(files["modules.json"].read_text(encoding="utf-8")) if "modules.json" in files else []
    for module in modules:
        kind, path = module["type"].rsplit(".", 1)[-1], PurePosixPath(module["path"])
        wanted = {"Pooling": ["config.json"], "Dense": ["config.json", "model.safetensors"]}.get(kind, [])
        for name in wanted:
            require(outgoing, str(path / name), f"of the module {kind} in modules.json; {EXPORT}")


def check_record(file: Path):
    """A run's record holds no paths of its maker's machine."""
    record = json.loads(file.read_text(encoding="utf-8"))
    if without_private(record) != record:
        raise ValueError(f"{file} names paths of this machine; `m2bert export` writes it without them, or remove it")


def check_base(outgoing: Outgoing):
    """An adapter's base is a name on the Hub and no path."""
    base = read_json(outgoing.folder / ADAPTER_CONFIG).get("base_model_name_or_path") or ""
    try:
        validate_repo_id(base)
        is_path = Path(base).exists() or (outgoing.folder / base).exists() or not base
    except HFValidationError:
        is_path = True
    if is_path:
        raise ValueError(
            f"{outgoing.folder / ADAPTER_CONFIG} has base_model_name_or_path={base!r}, a path that nobody else has; "
            "push the base and write its name there (org/name)"
        )
    card = (outgoing.folder / "README.md").read_text(encoding="utf-8")
    if outgoing.metadata.get("base_model") != base or re.search(r"from_pretrained\(\s*[\"'][/~.]", card):
        raise ValueError(
            f"{outgoing.folder / 'README.md'} does not name the base as the Hub knows it; write `base_model: {base}` "
            "at its head, and that name in place of paths of this machine"
        )
