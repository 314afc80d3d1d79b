"""Push a folder (a model, an adapter or a Space) to the Hub: check it here, compare it, send it as one commit.

`HfApi.create_commit` sends it: `HfApi.upload_folder` may split a folder into several commits, so that a push that is
cut off could leave half a model on the branch.
"""

import fnmatch
import hashlib
import importlib.util
import mmap
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from m2bert import __version__
from m2bert.files import digest, parse_json, read_text
from m2bert.model_files import AdapterConfig, ModelConfig, check_code_files, check_model_files, read_modules
from m2bert.terminal import shown

from .card import CardData, read_metadata, without_private
from .checkpoint import ADAPTER_CONFIG, auto_class_of, check_finite, check_fit, open_weights, read_settings
from .client import HubError, check_repo_id, plain_errors
from .folder import RECORDS
from .outputs import OURS
from .scores import LEADERBOARD

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
KINDS = {"model": "a model", "adapter": "an adapter of peft", "space": "a Space"}
EXPORT = "write the folder anew with `m2bert export`"
LARGE_BYTES = 10_000_000


@dataclass(frozen=True)
class Upload:
    """A folder to publish."""

    folder: Path
    kind: str  # "model", "adapter" (of peft) or "space"
    files: dict[str, Path]  # what is sent, by the path in the repository
    left_out: tuple[str, ...]  # paths that are not sent; a folder ends in "/"
    metadata: CardData

    @property
    def repo_type(self) -> str:
        return "space" if self.kind == "space" else "model"

    @property
    def foreign_code(self) -> list[str]:
        """Python files that are not, byte for byte, what this version writes under that name."""
        return [name for name, path in self.files.items() if name.endswith(".py") and not is_own_code(name, path)]


@dataclass
class Plan:
    """A push that was checked and compared; nothing is sent yet."""

    upload: Upload
    repo_id: str
    branch: str = "main"  # where the commit goes, or where a pull request is to be merged
    create_pr: bool = False
    private: bool = False  # as the repository is or will be made
    exists: bool | None = False  # None: the Hub could not be asked, see `why_unknown`
    branch_exists: bool = False  # a missing one starts from main
    parent: str | None = None  # the commit that the folder was compared with
    there: dict[str, RepoFile] = field(default_factory=dict)  # the files of that commit
    why_unknown: str = ""

    @cached_property
    def changes(self) -> dict[str, str]:
        """ "new", "changed" or "same" of every file that is sent."""
        return {name: compare(path, self.there.get(name)) for name, path in self.upload.files.items()}

    @property
    def stale(self) -> list[str]:
        """Files of an earlier model of this package that the folder lacks. They would be taken for the new model's, so
        the same commit deletes them."""
        if self.upload.kind != "model" or self.create_pr:
            return []
        ours = "modeling_m2bert.py" in self.there
        gone = self.there.keys() - self.upload.files.keys()
        return sorted(name for name in gone if name in {*RECORDS, LEADERBOARD} or (ours and OURS.fullmatch(name)))


def plan_push(
    folder: str | Path, repo_id: str, *, private: bool = False, create_pr: bool = False, revision: str | None = None
) -> Plan:
    """Check a folder and compare it with the repository org/name. Sends nothing; a public repository needs no token.

    Args:
        private: if the repository is made, make it private.
        create_pr: offer the folder as a pull request to a repository that exists.
        revision: the branch, main by default; made if it does not exist.
    """
    check_repo_id(repo_id)
    if create_pr and (private or revision):
        raise ValueError("--create-pr offers a change of main where it exists; leave --private and --revision out")
    upload = collect(folder)
    check_files(upload, repo_id)
    if upload.kind == "model" and not upload.foreign_code:
        check_loading(upload.folder)
    plan = Plan(upload, repo_id, revision or "main", create_pr, private)
    try:
        with plain_errors(repo_id):
            look(plan)
    except HubError as error:
        plan.exists, plan.why_unknown = None, str(error)
        return plan
    other = {"model": ADAPTER_CONFIG, "adapter": "config.json"}.get(upload.kind)
    problem = (
        "it is not on the Hub (or the token may not see it), and --create-pr needs one that is"
        if create_pr and not plan.exists
        else "it exists and is public; make it private in its settings, or leave --private out"
        if private and not plan.private
        else f"it holds {other}, but {folder} is {KINDS[upload.kind]}; take another repository"
        if other in plan.there  # loading takes the adapter of such a repository, with whatever base it names
        else ""
    )
    if problem:
        raise ValueError(f"{repo_id}: {problem}")
    return plan


def look(plan: Plan) -> None:
    """Fill in what is at the branch of a plan."""
    api, repo_type = HfApi(), plan.upload.repo_type
    try:
        info, plan.branch_exists = api.repo_info(plan.repo_id, repo_type=repo_type, revision=plan.branch), True
    except RevisionNotFoundError:
        info = api.repo_info(plan.repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        return
    tree = api.list_repo_tree(plan.repo_id, repo_type=repo_type, revision=info.sha, recursive=True)
    plan.there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    plan.exists, plan.private, plan.parent = True, bool(info.private), info.sha


def compare(path: Path, there: RepoFile | None) -> str:
    """Return "new", "changed" or "same"."""
    if there is None:
        return "new"
    if path.stat().st_size != there.size:
        return "changed"
    if there.lfs:
        return "same" if digest(path) == there.lfs.sha256 else "changed"
    content = path.read_bytes()
    return "same" if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.blob_id else "changed"


# --- what is sent, and what is checked before ---


def collect(folder: str | Path) -> Upload:
    """List the files of a folder that would be published. Raises ValueError unless it is of one kind."""
    root = Path(folder)
    check_code_files(root)
    files, left_out = {}, []
    for here, folders, names in os.walk(root):
        for name in sorted(folders + names):
            path = Path(here, name)
            inside = path.relative_to(root).as_posix()
            if stays_here(path):
                left_out.append(f"{inside}/" if name in folders else inside)
            elif name in names or path.is_symlink():  # a link to a folder is refused later, as a file
                files[inside] = path
        folders[:] = sorted(name for name in folders if not stays_here(Path(here, name)))
    metadata = read_metadata(root / "README.md")
    kinds = {"adapter": ADAPTER_CONFIG in files, "model": "config.json" in files, "space": metadata.sdk is not None}
    found = [kind for kind, is_one in kinds.items() if is_one]
    if len(found) != 1:
        what = " and ".join(KINDS[kind] for kind in found) or "nothing that can be pushed"
        raise ValueError(f"{root} is {what}; it needs one of config.json, {ADAPTER_CONFIG} and `sdk:` in README.md")
    return Upload(root, found[0], files, tuple(sorted(left_out)), metadata)


def stays_here(path: Path) -> bool:
    """Return True if the name of a path, or of the file that it links to, is not published."""
    return any(
        (name.startswith(".") and name not in HIDDEN_BUT_PUBLISHED)
        or any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in STAYS_HERE)
        for name in (path.name, path.resolve().name)
    )


def is_own_code(name: str, path: Path) -> bool:
    """Return True if a file is, byte for byte, what this version writes into folders under that name."""
    model = Path(importlib.util.find_spec("modeling_m2bert").origin).parent
    own = Path(__file__).with_name(name) if name == "handler.py" else model / name
    return "/" not in name and name != "__init__.py" and own.is_file() and own.read_bytes() == path.read_bytes()


def check_files(upload: Upload, repo_id: str):
    """Raise ValueError with all that is missing, damaged or must not be public. Runs none of the folder's code."""
    files = upload.files
    weights = upload.kind == "space" or any(name.endswith(".safetensors") and "/" not in name for name in files)
    needed = {"README.md, the card": "README.md" in files, "weights as safetensors": weights}
    problems = [f"it lacks {what}, {EXPORT}" for what, is_there in needed.items() if not is_there]
    problems += [f"{name} {why}" for name, path in files.items() if (why := why_not(name, path, upload.folder))]
    problems = problems or list(wrong_settings(upload, repo_id))
    if problems:
        raise ValueError(f"{upload.folder} cannot be pushed: {'; '.join(problems)}")


def why_not(name: str, path: Path, folder: Path) -> str:
    """Return why a file must not be sent, or "". Raises ValueError if it is of weights and damaged or not finite."""
    within = path.resolve().is_relative_to(folder.resolve())
    if path.is_symlink() and not (path.is_file() and (within or is_own_code(name, path))):
        return "is a link out of the folder, or to no file, put a copy in its place"
    if not path.is_file() or path.suffix.lower() in PICKLES:
        return "is a pickle, which runs code when it is loaded, or no plain file, take it out"
    weights, size = path.suffix == ".safetensors", path.stat().st_size
    if size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = size
            if weights:  # only their header can hold text
                end = min(size, 8 + int.from_bytes(content[:8], "little"))
            if SECRET.search(content, 0, end):
                return "holds what looks like a token of the Hub or a private key, remove and revoke it"
    if weights:
        with open_weights(path) as tensors:
            for tensor in sorted(tensors.keys()):
                check_finite({tensor: tensors.get_tensor(tensor)}, str(path))
    private = private_path(name, path) if path.suffix in TEXTS | {".json"} else None
    return f"names paths of this machine ({private}), remove them, or use `m2bert export`" if private else ""


def private_path(name: str, path: Path) -> str | None:
    """Return a path of this machine that a file of text or JSON names, or None. Of a record, every path is one."""
    is_vocabulary = PurePosixPath(name).name in VOCABULARIES
    if path.suffix != ".json":
        found = HOME.search(path.read_text(encoding="utf-8", errors="replace"))
        return found[0] if found and not is_vocabulary else None
    content = parse_json(read_text(path), str(path))
    if name in RECORDS and without_private(content) != content:
        return "a path in a record of training or conversion"
    if is_vocabulary:
        content = {key: value for key, value in content.items() if key != "model"} if isinstance(content, dict) else {}
    return next((text for text in strings(content) if HOME.search(text) or ABSOLUTE.fullmatch(text)), None)


def wrong_settings(upload: Upload, repo_id: str) -> Iterator[str]:
    """Yield what settings name and must not. Raises ValueError if one is malformed or does not fit the weights."""
    files, folder = upload.files, upload.folder
    check_model_files(folder)
    loaded = re.search(r'^path = "([^"]+)"$', read_text(files["README.md"]), flags=re.MULTILINE)
    if loaded and loaded[1] != repo_id:  # in the code that the card shows
        yield f"README.md loads {loaded[1]!r}, push to that --repo, or export the folder anew for this"
    if upload.kind == "adapter":
        base = read_settings(AdapterConfig, files[ADAPTER_CONFIG]).base_model_name_or_path or ""
        check_repo_id(base, f"{files[ADAPTER_CONFIG]}, which names the base on the Hub: base_model_name_or_path")
        if upload.metadata.base_model != base:
            yield f"README.md does not name the base, write `base_model: {base}` at its head"
    if upload.kind == "model":
        if read_settings(ModelConfig, files["config.json"]).model_type == "m2bert":
            check_fit(auto_class_of(folder), folder)
        settings = [path for name, path in files.items() if name.endswith(".json") and "/" not in name]
        contents = [parse_json(read_text(path), str(path)) for path in settings]
        maps = [content.get("auto_map") for content in contents if isinstance(content, dict)]
        classes = [text for text in strings(maps) if "." in text]
        if "modules.json" in files:
            classes += [module.type for module in read_modules(files["modules.json"])]
        for module in sorted({name.split(".")[0] for name in classes} - {"sentence_transformers"}):
            if f"{module}.py" not in files:  # `org/other--module` is code of another repository, and not pinned
                yield f"its settings name the code {module!r}, which is not in it, {EXPORT}"


def strings(content) -> Iterator[str]:
    """Yield the strings of a JSON value, keys too."""
    waiting = [content]
    for value in waiting:  # it grows in the loop
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            yield value


def check_loading(folder: Path):
    """Load a model in a process that cannot import this package, or raise ValueError. Its code is this version's, so it
    may run."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("clean_load.py")), str(folder)]
    with tempfile.TemporaryDirectory() as modules:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ValueError(f"{folder} does not load where this package is not installed ({reason}); {EXPORT}")


# --- sending, and what is shown ---


def carry_out(plan: Plan) -> CommitInfo | None:
    """Send a plan as one commit on top of the commit that it was compared with; None if there is nothing to send. If it
    is cut off, the branch stays as it was (a repository or branch that had to be made stays, without the files). Raises
    HubError, also if another commit came in between."""
    if plan.why_unknown:
        raise HubError(plan.why_unknown)
    added = [name for name, change in plan.changes.items() if change != "same"]
    if plan.exists and plan.branch_exists and not added and not plan.stale:
        return None
    operations = [CommitOperationAdd(name, plan.upload.files[name]) for name in added]
    operations += [CommitOperationDelete(name) for name in plan.stale]
    api, repository = HfApi(), {"repo_id": plan.repo_id, "repo_type": plan.upload.repo_type}
    with plain_errors(plan.repo_id):
        if not plan.exists:
            api.create_repo(**repository, private=plan.private, space_sdk=plan.upload.metadata.sdk, exist_ok=True)
        if not plan.branch_exists and plan.branch != "main":
            api.create_branch(**repository, branch=plan.branch, revision=plan.parent, exist_ok=True)
        return api.create_commit(
            **repository,
            operations=operations,
            commit_message=f"Upload {plan.upload.kind} with m2bert {__version__}",
            revision=plan.branch,
            create_pr=plan.create_pr,
            parent_commit=plan.parent,
        )


def describe(plan: Plan) -> str:
    """Return the plan as a table and a few lines."""
    upload = plan.upload
    target = f"{KINDS[upload.kind]} {upload.folder} -> {plan.repo_id}"
    if plan.create_pr:
        lines = [f"{target}, pull request for main"]
    else:
        missing = "not found (or not visible with this token), so it will be made"
        repository = {True: "exists", False: missing, None: "unknown"}[plan.exists]
        visible = "unknown whether private" if plan.why_unknown else "private" if plan.private else "public"
        known = plan.branch_exists or plan.branch == "main" or plan.why_unknown
        branch = plan.branch if known else f"{plan.branch} (will be made)"
        lines = [f"{target}, branch {branch}, repository {repository}, {visible}"]
    lines += [f"not compared with what is there: {plan.why_unknown}"] if plan.why_unknown else []
    sizes = {name: path.stat().st_size for name, path in upload.files.items()}
    for name, size in sizes.items():
        status = "" if plan.why_unknown else plan.changes[name]
        large = name.endswith(".safetensors") or size > LARGE_BYTES  # a guess; the server decides
        lines.append(f"  {status:8}{size:>14,}  {'LFS' if large else '   '}  {name}")
    lines.append(f"{len(sizes)} files, {sum(sizes.values()):,} bytes")
    lines += [f"  deleted: {name} (of an earlier model)" for name in plan.stale]
    kept = sorted(plan.there.keys() - sizes.keys() - set(plan.stale))
    lines += [f"stays in the repository: {', '.join(kept)}"] if kept else []
    lines += [f"left out, stays here: {', '.join(upload.left_out)}"] if upload.left_out else []
    if upload.kind != "space":  # who loads the repository runs its code
        version, foreign = f"m2bert {__version__}", upload.foreign_code
        own = sum(name.endswith(".py") for name in sizes) - len(foreign)
        lines += [f"code as in {version}, byte for byte: {own} files"] if own else []
        lines += [f"code that differs from {version} or is not of it: {name}" for name in foreign]
        lines += ["not loaded as a check, which would run that code"] if foreign and upload.kind == "model" else []
    return "\n".join(map(shown, lines))


def describe_commit(plan: Plan, commit: CommitInfo) -> str:
    """Return the address of the commit, and the lines that load exactly it."""
    lines = [commit.pr_url or commit.commit_url]
    pinned = f'"{plan.repo_id}", revision="{commit.oid}"'
    if plan.upload.kind == "model":
        lines.append(f"AutoModel.from_pretrained({pinned}, trust_remote_code=True)")
        if "modules.json" in plan.upload.files:
            lines.append(f"SentenceTransformer({pinned}, trust_remote_code=True)")
    elif plan.upload.kind == "adapter":
        lines.append(f"PeftModel.from_pretrained(base, {pinned})")
    elif "metric" in (plan.upload.metadata.tags or []):
        lines.append(f"evaluate.load({pinned})")
    return "\n".join(map(shown, lines))
