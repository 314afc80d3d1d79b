"""What a folder would publish: its kind, its files, and what stays here. Read from the disk alone."""

import fnmatch
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import SPACES_SDK_TYPES

from m2bert.files import parse_yaml, read_text
from m2bert.schema import FOREIGN, Schema, checked

from .checkpoint import ADAPTER_CONFIG

STAYS_HERE = (  # in lower case; hidden names stay too, with the exceptions below
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
LONGEST_SECRET_BYTES = 100  # that the pattern takes
BLOCK_BYTES = 1 << 24
YAML_HEAD = re.compile(r"\s*---\s*?\n(.*?)^---\s*?$", re.DOTALL | re.MULTILINE)


class CardData(Schema):
    """The YAML at the head of a README.md, as far as it is used here."""

    model_config = FOREIGN

    sdk: str | None = None
    app_file: str | None = None
    base_model: str | list[str] | None = None
    tags: list[str] | None = None


@dataclass(frozen=True)
class Outgoing:
    """A folder that may be published.

    Attributes:
        folder: its path.
        kind: "model", "adapter" (of peft) or "space".
        files: the files that go, by their path in the repository.
        left_out: paths that stay here; a folder ends in "/".
        sdk: of a Space.
    """

    folder: Path
    kind: str
    files: dict[str, Path]
    left_out: tuple[str, ...]
    sdk: str | None = None

    @property
    def repo_type(self) -> str:
        return "space" if self.kind == "space" else "model"

    @property
    def metadata(self) -> CardData:
        """The YAML at the head of its README.md."""
        return read_metadata(self.folder / "README.md")

    @property
    def code(self) -> dict[str, bool]:
        """Python files: whether each is, byte for byte, the file that this package writes under that name."""
        own = package_code()
        return {
            name: name in own and own[name].read_bytes() == path.read_bytes()
            for name, path in self.files.items()
            if name.endswith(".py")
        }


def package_code() -> dict[str, Path]:
    """The Python files that this package writes into folders, by their names there."""
    source = Path(importlib.util.find_spec("modeling_m2bert").origin).parent
    own = {path.name: path for path in source.glob("*.py") if path.name != "__init__.py"}
    handler = Path(__file__).with_name("handler.py")
    return own | ({handler.name: handler} if handler.is_file() else {})


def collect(folder: str | Path) -> Outgoing:
    """Name all files of a folder that would be published. Whether they are whole is `check_outgoing`'s question.

    Raises:
        ValueError: no such folder, no kind of folder that can be published, or a file in it that must not be.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder; name a folder of `m2bert export`, of an adapter or of a Space")
    kind, sdk = tell_kind(root)
    files, left_out = {}, []
    for here, folders, names in os.walk(root):
        for name in sorted(folders + names):
            path = Path(here, name)
            inside = path.relative_to(root).as_posix()
            if stays_here(path):
                left_out.append(inside + "/" * (name in folders))
            elif path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(root.resolve())):
                raise ValueError(
                    f"{path} is a link that leads out of the folder or to no file; put a copy in its place"
                )
            elif name in names:
                check_publishable(path)
                files[inside] = path
        folders[:] = sorted(name for name in folders if not stays_here(Path(here, name)))
    return Outgoing(root, kind, files, tuple(sorted(left_out)), sdk)


def tell_kind(root: Path) -> tuple[str, str | None]:
    """("space", its sdk), ("adapter", None) or ("model", None). Raises ValueError where it is none of them."""
    sdk = read_metadata(root / "README.md").sdk
    found = [name for name in (ADAPTER_CONFIG, "config.json") if (root / name).is_file()]
    if len(found) + (sdk is not None) > 1:
        both = " and ".join([*found, *(["`sdk:` in README.md"] if sdk is not None else [])])
        raise ValueError(f"{root} has {both}: a model, an adapter and a Space are repositories of their own; part them")
    if sdk is not None:
        if sdk not in SPACES_SDK_TYPES:
            raise ValueError(f"README.md of {root} has sdk: {sdk}; a Space takes one of {', '.join(SPACES_SDK_TYPES)}")
        return "space", sdk
    for name, kind in ((ADAPTER_CONFIG, "adapter"), ("config.json", "model")):
        if (root / name).is_file():
            return kind, None
    raise ValueError(
        f"{root} is nothing that can be pushed: it lacks config.json (a model: write one with `m2bert export`), "
        f"{ADAPTER_CONFIG} (an adapter of peft), or a README.md with `sdk:` at its head (a Space)"
    )


def read_metadata(card: Path) -> CardData:
    """Read the YAML at the head of a card; where there is none, every field is None.

    Raises:
        ValueError: it is no valid YAML, or a field is of another type. Names the file.
    """
    head = YAML_HEAD.match(read_text(card)) if card.is_file() else None
    where = f"the YAML at the head of {card}"
    return checked(CardData, (parse_yaml(head[1], where) or {}) if head else {}, where)


def stays_here(path: Path) -> bool:
    """Whether its name, or that of the file that it links to, is one that is not published."""
    for name in {path.name, path.resolve().name}:
        if name.startswith(".") and name not in HIDDEN_BUT_PUBLISHED:
            return True
        if any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in STAYS_HERE):
            return True
    return False


def check_publishable(path: Path):
    """Raise ValueError if a file is a pickle, holds a token of the Hub or a private key, or is no plain file."""
    if not path.is_file():
        raise ValueError(f"{path} is no plain file; remove it")
    if path.suffix.lower() in PICKLES:
        raise ValueError(f"{path} is a pickle, which runs code when it is loaded; keep weights as safetensors, and "
                         "take this file out of the folder")  # fmt: skip
    if holds_secret(path):
        raise ValueError(f"{path} holds what looks like a token of the Hub or a private key; remove it, and revoke it")


def holds_secret(path: Path) -> bool:
    """Whether SECRET is found in a file; of safetensors, in the header."""
    with path.open("rb") as file:
        left = path.stat().st_size
        if path.suffix == ".safetensors":
            left = min(left, int.from_bytes(file.read(8), "little"))
        before = b""
        while block := file.read(min(left, BLOCK_BYTES)):
            if SECRET.search(before + block):
                return True
            before, left = block[-LONGEST_SECRET_BYTES:], left - len(block)
    return False
