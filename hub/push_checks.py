"""A folder to publish: which of its files are sent, and what is checked on this machine before they are."""

import fnmatch
import importlib.util
import mmap
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open

from m2bert.files import parse_json, parse_yaml, read_json, read_text
from m2bert.model_files import AdapterConfig, check_code_files, check_model_files, read_modules
from m2bert.schema import FOREIGN, Schema, checked

from .card import without_private
from .checkpoint import ADAPTER_CONFIG, auto_class_of, check_fit, read_config
from .export import RECORDS
from .hub_errors import check_repo_id

STAYS_HERE = (  # names in lower case; hidden names stay too, with the exceptions below
    "__pycache__", "*.pyc", "*~", "*.swp", "*.tmp", "thumbs.db", "desktop.ini",  # left by tools
    "checkpoints", "checkpoint-*", "wandb", "runs",  # of training
    "*.pem", "*.key", "*.p12", "*.env", "*netrc", "id_rsa*", "id_ed25519*", "credentials*", "secrets*", "token",
    "token.*", "kaggle.json",
)  # fmt: skip
HIDDEN_BUT_PUBLISHED = {".gitattributes", ".eval_results"}
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".npy", ".npz"}  # or may hold one
SECRET = re.compile(
    rb"(?<![A-Za-z0-9])(hf|api_org)_((oauth|jwt)_)?[A-Za-z0-9]{30}|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"
)
# In any text, a file in somebody's home; /home/user is everybody's, in containers of the Hub and in examples.
HOME = re.compile(r"(?<![\w.:/~-])(?:file://)?/(?:home|Users|root)/(?!user\b)[^\s/'\"]+|\b[A-Za-z]:\\Users\\")
ABSOLUTE = re.compile(r"(?:file://)?(?:~|/[^\s/<>]+)/[^\s/].*|[A-Za-z]:\\.+", re.DOTALL)  # a whole value of JSON
TEXTS = {".md", ".txt", ".yaml", ".yml", ".jinja"}
VOCABULARIES = {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"}  # words, some of which look like paths
YAML_HEAD = re.compile(r"\s*---\s*?\n(.*?)^---\s*?$", re.DOTALL | re.MULTILINE)
KINDS = {"model": "a model", "adapter": "an adapter of peft", "space": "a Space"}
EXPORT = "write the folder anew with `m2bert export`"


class CardData(Schema):
    """The fields used here of the YAML at the head of a README.md."""

    model_config = FOREIGN

    sdk: str | None = None
    base_model: str | list[str] | None = None
    tags: list[str] | None = None


@dataclass(frozen=True)
class Upload:
    """A folder to publish.

    Attributes:
        folder: its path.
        kind: "model", "adapter" (of peft) or "space".
        files: the files that are sent, by their path in the repository.
        left_out: paths that are not sent; a folder ends in "/".
        metadata: the head of its README.md.
    """

    folder: Path
    kind: str
    files: dict[str, Path]
    left_out: tuple[str, ...]
    metadata: CardData

    @property
    def repo_type(self) -> str:
        return "space" if self.kind == "space" else "model"

    @property
    def foreign_code(self) -> list[str]:
        """Python files that are not, byte for byte, what this version writes under that name."""
        return [name for name, path in self.files.items() if name.endswith(".py") and not is_own_code(name, path)]


def collect(folder: str | Path) -> Upload:
    """List the files of a folder that would be published.

    Raises:
        ValueError: no such folder, no kind of folder that can be pushed, or a link to anything but a file of the folder
            or this version's code.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder; name a folder of `m2bert export`, of an adapter or of a Space")
    check_code_files(root)
    files, left_out = {}, []
    for here, folders, names in os.walk(root):
        for name in sorted(folders + names):
            path = Path(here, name)
            inside = path.relative_to(root).as_posix()
            if stays_here(path):
                left_out.append(f"{inside}/" if name in folders else inside)
            elif path.is_symlink() and not (path.is_file() and (is_inside(path, root) or is_own_code(inside, path))):
                raise ValueError(f"{path} is a link out of the folder, or to no file; put a copy in its place")
            elif name in names:
                files[inside] = path
        folders[:] = sorted(name for name in folders if not stays_here(Path(here, name)))
    metadata = read_metadata(root / "README.md")
    kinds = {"adapter": ADAPTER_CONFIG in files, "model": "config.json" in files, "space": metadata.sdk is not None}
    found = [kind for kind, is_one in kinds.items() if is_one]
    if len(found) != 1:
        raise ValueError(
            f"{root} is {' and '.join(KINDS[kind] for kind in found) or 'nothing that can be pushed'}; push a folder "
            f"with one of config.json (a model), {ADAPTER_CONFIG} (an adapter) and `sdk:` in README.md (a Space)"
        )
    return Upload(root, found[0], files, tuple(sorted(left_out)), metadata)


def stays_here(path: Path) -> bool:
    """Return True if the name of a path, or of the file that it links to, is not published."""
    return any(
        (name.startswith(".") and name not in HIDDEN_BUT_PUBLISHED)
        or any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in STAYS_HERE)
        for name in (path.name, path.resolve().name)
    )


def is_inside(path: Path, root: Path) -> bool:
    """Return True if a path, with its links followed, is in a folder."""
    return path.resolve().is_relative_to(root.resolve())


def is_own_code(name: str, path: Path) -> bool:
    """Return True if a file is, byte for byte, what this version writes into folders under that name."""
    model = Path(importlib.util.find_spec("modeling_m2bert").origin).parent
    own = Path(__file__).with_name(name) if name == "handler.py" else model / name
    return "/" not in name and name != "__init__.py" and own.is_file() and own.read_bytes() == path.read_bytes()


def read_metadata(card: Path) -> CardData:
    """Read the YAML at the head of a card; without one, every field is None. Raises ValueError if it is malformed."""
    head = YAML_HEAD.match(read_text(card)) if card.is_file() else None
    where = f"the YAML at the head of {card}"
    return checked(CardData, (parse_yaml(head[1], where) or {}) if head else {}, where)


def check_files(upload: Upload, repo_id: str):
    """Check what the files hold. Runs no code of the folder.

    Raises:
        ValueError: a file is missing, damaged or must not be public, or names code that is not in the folder.
    """
    files, folder = upload.files, upload.folder
    if "README.md" not in files:
        raise ValueError(f"{folder} lacks README.md, the card; {EXPORT}")
    for name, path in files.items():
        check_file(name, path)
    check_model_files(folder)
    card = read_text(files["README.md"])
    loaded = re.search(r'^path = "([^"]+)"$', card, flags=re.MULTILINE)  # in the code that the card shows
    if loaded and loaded[1] != repo_id:
        raise ValueError(f"README.md of {folder} loads {loaded[1]!r}, and not --repo {repo_id!r}; name that one, or "
                         f"export it anew with --repo {repo_id}")  # fmt: skip
    weights = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if upload.kind != "space" and not weights:
        raise ValueError(f"{folder} has no weights as safetensors; {EXPORT}")
    if upload.kind == "model":
        if read_config(folder).get("model_type") == "m2bert":  # names the tensors, and allocates none
            check_fit(auto_class_of(folder), folder)
        for module in sorted(code_modules(upload)):
            if f"{module}.py" not in files:  # `org/other--module` is code of another repository, and not pinned
                raise ValueError(f"{folder} names the code {module!r}, which is not in it; {EXPORT}")
    elif upload.kind == "adapter":
        check_base(upload)


def check_file(name: str, path: Path):
    """Raise ValueError if a file is a pickle, holds a secret or a path of this machine, or its weights are not finite
    numbers."""
    if not path.is_file() or path.suffix.lower() in PICKLES:
        raise ValueError(f"{path} is a pickle, which runs code when it is loaded, or no plain file; keep weights as "
                         "safetensors, and take it out of the folder")  # fmt: skip
    if holds_secret(path):
        raise ValueError(f"{path} holds what looks like a token of the Hub or a private key; remove it, and revoke it")
    if path.suffix == ".safetensors":
        check_weights(path)
    private = private_path(name, path) if path.suffix in TEXTS | {".json"} else None
    if private:
        raise ValueError(f"{path} names paths of this machine ({private}); `m2bert export` writes it without them, or "
                         "remove them")  # fmt: skip


def holds_secret(path: Path) -> bool:
    """Return True if SECRET is found in a file; of safetensors, in the header."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else len(content)
        return SECRET.search(content, 0, min(end, len(content))) is not None


def check_weights(path: Path):
    """Raise ValueError if a file of safetensors is damaged, or numbers in it are not finite."""
    try:
        with safe_open(path, "pt") as tensors:  # reads the header, and compares it with the file's length
            for name in sorted(tensors.keys()):
                tensor = tensors.get_tensor(name)
                tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # float8 has no isfinite
                if not torch.isfinite(tensor).all():
                    raise ValueError(f"{path}: {name!r} holds NaN or infinite numbers; export whole weights")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); copy or export it again") from error


def private_path(name: str, path: Path) -> str | None:
    """Return a path of this machine that a file of text or JSON names, or None. Of a record, every path is one."""
    if path.suffix != ".json":
        found = HOME.search(path.read_text(encoding="utf-8", errors="replace"))
        return found[0] if found and PurePosixPath(name).name not in VOCABULARIES else None
    content = parse_json(read_text(path), str(path))
    if name in RECORDS and without_private(content) != content:
        return "it is a record"
    if PurePosixPath(name).name in VOCABULARIES:
        content = {key: value for key, value in content.items() if key != "model"} if isinstance(content, dict) else {}
    return next((text for text in strings(content) if HOME.search(text) or ABSOLUTE.fullmatch(text)), None)


def strings(content) -> Iterator[str]:
    """Yield the strings of a JSON value, keys too."""
    waiting = [content]
    for value in waiting:
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            yield value


def code_modules(upload: Upload) -> set[str]:
    """Return the modules of own code that a model's settings name, such as `modeling_m2bert`."""
    root = [path for name, path in upload.files.items() if name.endswith(".json") and "/" not in name]
    settings = [content for path in root if isinstance(content := parse_json(read_text(path), str(path)), dict)]
    classes = [text for content in settings for text in strings(content.get("auto_map")) if "." in text]
    if "modules.json" in upload.files:
        classes += [module.type for module in read_modules(upload.files["modules.json"])]
    return {name.split(".")[0] for name in classes} - {"sentence_transformers"}


def check_base(upload: Upload):
    """Raise ValueError unless an adapter's settings and card name its base as the Hub knows it."""
    path = upload.folder / ADAPTER_CONFIG
    base = checked(AdapterConfig, read_json(path), str(path)).base_model_name_or_path or ""
    try:
        check_repo_id(base)
    except ValueError as error:
        raise ValueError(
            f"{path} has base_model_name_or_path={base!r}, which nobody else can load; push the base and write its "
            "name there (org/name)"
        ) from error
    if upload.metadata.base_model != base:
        raise ValueError(f"README.md of {upload.folder} does not name the base; write `base_model: {base}` at its head")


def check_loading(folder: Path):
    """Load a model in a process that cannot import this package. Its code is this version's, so it may run.

    Raises:
        ValueError: a user without this package could not load it.
    """
    command = [sys.executable, "-P", str(Path(__file__).with_name("clean_load.py")), str(folder)]
    with tempfile.TemporaryDirectory() as modules:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ValueError(f"{folder} does not load where this package is not installed ({reason}); {EXPORT}")
