"""Whether a folder is complete: everything that loading it from the Hub would ask for is in it, and whole."""

import ast
import importlib.util
import re
from codecs import BOM_UTF8
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import ConfigDict
from safetensors import SafetensorError, safe_open

from m2bert.files import parse_json, read_json, read_text
from m2bert.model_files import AdapterConfig, TransformerSettings, WeightsIndex, check_model_files, read_modules
from m2bert.schema import FOREIGN, Schema, checked

from .checkpoint import ADAPTER_CONFIG, auto_class_of, check_fit, load_tokenizer, read_config, tensor_shapes
from .folder import check_tokenizer
from .outgoing import Outgoing
from .private import without_private
from .sentence_files import DenseSettings, PoolingSettings

INDEX = "model.safetensors.index.json"
EXPORT = "write the folder anew with `m2bert export`"
RECORDS = ("training.json", "conversion.json")
# In any text, a file in somebody's home; as the whole of a text, a path from a root or a home.
HOME = re.compile(r"(?<![\w.:/~-])(?:file://)?(?:/(?:home|Users|root)/|~/)[^\s/'\"]+|\b[A-Za-z]:\\Users\\")
ABSOLUTE = re.compile(r"(?:file://)?(?:~|/[^\s/<>]+)/[^\s/].*|[A-Za-z]:\\.+", re.DOTALL)


class OwnTransformerSettings(TransformerSettings):
    """sentence_bert_config.json of an M2-BERT. Each key is an argument of sentence-transformers' class."""

    model_config = ConfigDict(extra="forbid")


class OwnPoolingSettings(PoolingSettings):
    """The same of its Pooling."""

    model_config = ConfigDict(extra="forbid")


class OwnDenseSettings(DenseSettings):
    """The same of its Dense."""

    model_config = ConfigDict(extra="forbid")

    module_input_name: str = "sentence_embedding"
    module_output_name: str | None = None
    use_residual: bool = False


class CodeReferences(Schema):
    """Of config.json and tokenizer_config.json: the classes that are loaded as a repository's own code."""

    model_config = FOREIGN

    model_type: str | None = None
    auto_map: dict[str, str | list[str | None]] | list[str | None] | None = None  # a list: of an old tokenizer


def check_outgoing(outgoing: Outgoing):
    """Check a folder as a stranger would load it.

    Raises:
        ValueError: a file is missing, cut short or damaged, weights are not finite, code imports what is not there, a
            JSON file names a path of this machine, or an adapter's base is not on the Hub.
    """
    if outgoing.kind == "model":
        check_weights(outgoing, "model.safetensors", INDEX)
    elif outgoing.kind == "adapter":
        check_weights(outgoing, "adapter_model.safetensors")
    require(outgoing, "README.md", "the card; " + EXPORT)
    for path in [*outgoing.folder.glob("*.*"), *outgoing.folder.glob("[0-9]*_*/*.*")]:
        if path.suffix in (".json", ".safetensors") and path.is_dir():
            raise ValueError(f"{path} is a folder, where a file of this name is read; {EXPORT}")
    check_model_files(outgoing.folder)
    if outgoing.kind == "model":
        check_auto_map(outgoing)
        check_modules(outgoing)
    elif outgoing.kind == "adapter":
        check_base(outgoing)
    elif outgoing.sdk in ("gradio", "streamlit"):
        require(outgoing, outgoing.metadata.app_file or "app.py", "the Space's program")
    for name, path in outgoing.files.items():
        if name.endswith(".json"):
            check_json(path, is_record=name in RECORDS)
        elif name.endswith(".py"):
            check_imports(outgoing, name)
    if outgoing.kind == "model":
        check_own_model(outgoing.folder)


def require(outgoing: Outgoing, name: str, what: str):
    if name not in outgoing.files:
        raise ValueError(f"{outgoing.folder} lacks {name}: {what}")


def check_weights(outgoing: Outgoing, single: str, index: str | None = None):
    """Every safetensors file is whole and holds finite numbers, and those that loading looks for are there."""
    names = {path: finite_tensors(file) for path, file in outgoing.files.items() if path.endswith(".safetensors")}
    if index in outgoing.files:
        weight_map = checked(WeightsIndex, read_json(outgoing.files[index]), str(outgoing.files[index])).weight_map
        for tensor, shard in weight_map.items():
            if tensor not in names.get(shard, ()):
                raise ValueError(f"{outgoing.folder / index} names {shard} for {tensor}, which is not there; {EXPORT}")
    if single not in names and not (index in outgoing.files and weight_map):
        raise ValueError(f"{outgoing.folder} has no {single}, the weights; {EXPORT}")


def finite_tensors(file: Path) -> set[str]:
    """Return the names of a file's tensors. Raises ValueError if it is damaged, or numbers in it are not finite."""
    try:
        with safe_open(file, "pt") as tensors:  # reads the header, and compares it with the file's length
            names = set(tensors.keys())
            for name in sorted(names):
                tensor = tensors.get_tensor(name)
                tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 cannot be asked
                if not torch.isfinite(tensor).all():
                    raise ValueError(f"{file}: {name!r} holds NaN or infinite numbers; export whole weights")
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut short ({error}); copy or export it again") from error
    return names


def check_json(file: Path, is_record: bool):
    """Raise ValueError if a file is no valid JSON, or names a path of this machine: any path if it is a record."""
    if file.read_bytes().startswith(BOM_UTF8):
        raise ValueError(f"{file} begins with a byte order mark, which its other readers refuse; save it without")
    content = parse_json(read_text(file), str(file))
    if file.name == "tokenizer.json" and isinstance(content, dict):
        content = {name: value for name, value in content.items() if name != "model"}  # words, of which some look so
    place = private_place(content)
    if place is not None or (is_record and without_private(content) != content):
        raise ValueError(f"{file} names paths of this machine{f' ({place})' if place else ''}; `m2bert export` writes "
                         "it without them, or remove them")  # fmt: skip


def private_place(content: Any) -> str | None:
    """Where JSON first holds a path of somebody's machine, such as `a.b[0]`; None if nowhere."""
    waiting = [("", content)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{place}.{key}".lstrip("."), inner) for key, inner in value.items()]
            waiting += [(f"{place} has such a key".lstrip(), key) for key in value]
        elif isinstance(value, list):
            waiting += [(f"{place}[{index}]", inner) for index, inner in enumerate(value)]
        elif isinstance(value, str) and (HOME.search(value) or ABSOLUTE.fullmatch(value)):
            return place or "the value"
    return None


def check_imports(outgoing: Outgoing, name: str):
    """Relative imports lead to files of the folder; in a model, which the Hub's loader wants flat, to siblings."""
    try:
        tree = ast.parse(outgoing.files[name].read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
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
    for file in ("config.json", "tokenizer_config.json"):
        if file not in outgoing.files:
            continue
        path = outgoing.folder / file
        named = checked(CodeReferences, read_json(path), str(path))
        if named.model_type == "m2bert" and not named.auto_map:
            raise ValueError(f"{path} has no auto_map, so nobody could load it; {EXPORT}")
        classes = named.auto_map.values() if isinstance(named.auto_map, dict) else [named.auto_map]
        for value in classes:
            for reference in filter(None, value if isinstance(value, list) else [value]):
                module = f"{reference.split('.')[0]}.py"
                if module not in outgoing.files:  # `org/other--module` is code of another repository, and not pinned
                    raise ValueError(f"{path} names {reference!r}, but {module!r} is missing; {EXPORT}")


def check_own_model(folder: Path):
    """An M2-BERT's weights are those of its configuration, and its tokenizer and modules fit it."""
    model_type = read_config(folder).get("model_type")
    if model_type is None:
        raise ValueError(f"{folder / 'config.json'} has no model_type, so nobody could load it; {EXPORT}")
    if model_type != "m2bert":
        return
    config = check_fit(auto_class_of(folder), folder)
    if (folder / "tokenizer.json").is_file():
        check_tokenizer(load_tokenizer(folder), config.vocab_size)
    if (folder / "modules.json").is_file():
        file = folder / "sentence_bert_config.json"
        transformer = checked(OwnTransformerSettings, read_json(file), str(file))
        check_widths(folder, config.hidden_size, transformer.module_output_name == "sentence_embedding")


def check_widths(folder: Path, width: int, is_pooled: bool):
    """sentence-transformers' modules take vectors as wide as those that they are given.

    Args:
        width: of a token's vector.
        is_pooled: the first module gives a text's vector.
    """
    given = None
    for module in read_modules(folder / "modules.json"):
        file, kind = folder / module.path / "config.json", module.type.rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = checked(OwnPoolingSettings, read_json(file), str(file))
            takes, given, is_pooled = pooling.width, width, True
            gives = width * len(pooling.modes)
        elif kind == "Dense":
            dense = checked(OwnDenseSettings, read_json(file), str(file))
            takes, gives = dense.in_features, dense.out_features
            shapes = {"linear.weight": (gives, takes)} | ({"linear.bias": (gives,)} if dense.bias else {})
            if tensor_shapes(file.parent) != shapes:
                raise ValueError(f"{file} does not fit the weights beside it, which are not {shapes}; {EXPORT}")
        else:
            continue
        if given not in (None, takes):
            raise ValueError(f"{file} takes vectors of {takes} numbers, but is given {given}; {EXPORT}")
        given = gives
    if not is_pooled:
        raise ValueError(f"{folder / 'modules.json'} has no Pooling, and so no vector of a text; {EXPORT}")


def check_modules(outgoing: Outgoing):
    """What sentence-transformers reads: a vocabulary, and the settings and weights of every module."""
    files = outgoing.files
    if {"tokenizer_config.json", "handler.py"} & files.keys() and not {"tokenizer.json", "vocab.txt"} & files.keys():
        raise ValueError(f"{outgoing.folder} lacks tokenizer.json, without which every word is unknown; {EXPORT}")
    for module in read_modules(outgoing.folder / "modules.json") if "modules.json" in files else []:
        package, kind = module.type.split(".", 1)[0], module.type.rsplit(".", 1)[-1]
        if package != "sentence_transformers" and f"{package}.py" not in files:
            raise ValueError(f"modules.json of {outgoing.folder} names {module.type!r}, code of neither "
                             f"sentence-transformers nor this folder; {EXPORT}")  # fmt: skip
        if package == "sentence_transformers" and not _has_class(module.type):
            raise ValueError(f"modules.json of {outgoing.folder} names {module.type!r}, which sentence-transformers "
                             f"lacks; {EXPORT}")  # fmt: skip
        wanted = {"Pooling": ["config.json"], "Dense": ["config.json", "model.safetensors"]}.get(kind, [])
        for name in wanted:
            require(outgoing, str(PurePosixPath(module.path) / name), f"of the module {kind} in modules.json; {EXPORT}")


def _has_class(name: str) -> bool:
    """Return whether sentence-transformers has a class of this name; true where it is not installed."""
    module, _, kind = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), kind)
    except ImportError:
        return importlib.util.find_spec("sentence_transformers") is None


def check_base(outgoing: Outgoing):
    """An adapter's base is a name on the Hub and no path."""
    path = outgoing.folder / ADAPTER_CONFIG
    base = checked(AdapterConfig, read_json(path), str(path)).base_model_name_or_path or ""
    try:
        validate_repo_id(base)
        is_path = Path(base).exists() or (outgoing.folder / base).exists() or not base
    except HFValidationError:
        is_path = True
    if is_path:
        raise ValueError(
            f"{path} has base_model_name_or_path={base!r}, a path that nobody else has; "
            "push the base and write its name there (org/name)"
        )
    card = read_text(outgoing.folder / "README.md")
    if outgoing.metadata.base_model != base or re.search(r"from_pretrained\(\s*[\"'][/~.]", card):
        raise ValueError(
            f"{outgoing.folder / 'README.md'} does not name the base as the Hub knows it; write `base_model: {base}` "
            "at its head, and that name in place of paths of this machine"
        )
