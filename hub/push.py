"""Push a folder (a model, an adapter or a Space) to the Hub.

`plan_push` checks the folder on this machine and compares it with the repository. `carry_out` sends it as one commit.
It calls `HfApi.create_commit`, because `HfApi.upload_folder` may split a folder into several commits: an interrupted
push could then leave half a model on the branch.
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

# Patterns of the names, in lower case, that are never published.
NOT_PUBLISHED = (
    "__pycache__", "*.pyc", "*~", "*.swp", "*.tmp", "thumbs.db", "desktop.ini",  # tools leave these
    "checkpoints", "checkpoint-*", "wandb", "runs",  # training leaves these
    "*.pem", "*.key", "*.p12", "*.env", "*netrc", "id_rsa*", "id_ed25519*", "credentials*", "secrets*", "token",
    "token.*", "kaggle.json",
)  # fmt: skip
HIDDEN_BUT_PUBLISHED = {".gitattributes", ".eval_results"}  # no other hidden name is published
# Suffixes of files that are pickles or may hold one.
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".npy", ".npz"}
SECRET = re.compile(
    rb"(?<![A-Za-z0-9])(hf|api_org)_((oauth|jwt)_)?[A-Za-z0-9]{30}|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"
)
# A path in a user's home, anywhere in a text. /home/user is allowed: containers of the Hub and examples use it.
HOME_PATH = re.compile(r"(?<![\w.:/~-])(?:file://)?/(?:home|Users|root)/(?!user\b)[^\s/'\"]+|\b[A-Za-z]:\\Users\\")
# An absolute path that is the whole of a JSON string.
ABSOLUTE_PATH = re.compile(r"(?:file://)?(?:~|/[^\s/<>]+)/[^\s/].*|[A-Za-z]:\\.+", re.DOTALL)
TEXTS = {".md", ".txt", ".yaml", ".yml", ".jinja"}
# Some words of a vocabulary look like paths.
VOCABULARIES = {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"}
KINDS = {"model": "a model", "adapter": "an adapter of peft", "space": "a Space"}
SCORED = re.compile(r"([\w.-]+\.safetensors) ([0-9a-f]{12})\b")  # weights whose scores a card shows
EXPORT_AGAIN = "write the folder anew with `m2bert export`"  # the advice that ends several messages
LARGE_BYTES = 10_000_000


@dataclass(frozen=True)
class Upload:
    """A folder to publish."""

    folder: Path
    kind: str  # "model", "adapter" (of peft) or "space"
    files: dict[str, Path]  # what is sent, by the path in the repository
    left_out: tuple[str, ...]  # paths that are not sent; a folder ends in "/"
    metadata: CardData  # of README.md

    @property
    def repo_type(self) -> str:
        return "space" if self.kind == "space" else "model"

    @property
    def foreign_code(self) -> list[str]:
        """Python files that are not, byte for byte, files of this version of the package; see `is_package_code`."""
        return [name for name, path in self.files.items() if name.endswith(".py") and not is_package_code(name, path)]


@dataclass
class Plan:
    """A push whose folder is checked and compared with the repository. Nothing is sent yet."""

    upload: Upload
    repo_id: str
    branch: str = "main"  # where the commit goes, or where a pull request is to be merged
    create_pr: bool = False
    private: bool = False  # whether a repository that has to be made will be private
    exists: bool = False  # whether the repository exists
    is_private: bool = False  # whether the repository that exists is private
    branch_exists: bool = False  # a missing branch starts from main
    parent: str | None = None  # the commit that the folder was compared with
    remote_files: dict[str, RepoFile] = field(default_factory=dict)  # the files of that commit
    why_unknown: str = ""  # why the Hub did not tell what the repository holds; empty if it did

    @cached_property
    def changes(self) -> dict[str, str]:
        """{path of a file of the upload: "new", "changed" or "same"}."""
        return {name: compare(path, self.remote_files.get(name)) for name, path in self.upload.files.items()}

    @property
    def stale(self) -> list[str]:
        """Files of an earlier model of this package that the folder lacks. The same commit deletes them, because
        readers would take them for files of the new model."""
        if self.upload.kind != "model" or self.create_pr:
            return []
        held_m2bert = "modeling_m2bert.py" in self.remote_files
        lacking = self.remote_files.keys() - self.upload.files.keys()
        records = {*RECORDS, LEADERBOARD}
        return sorted(name for name in lacking if name in records or (held_m2bert and OURS.fullmatch(name)))


def plan_push(
    folder: str | Path, repo_id: str, *, private: bool = False, create_pr: bool = False, revision: str | None = None
) -> Plan:
    """Check a folder and compare it with the repository org/name. Sends nothing; a public repository needs no token.

    Args:
        private: make the repository private, if it has to be made.
        create_pr: offer the folder as a pull request to main of a repository that exists.
        revision: the branch, main by default. A missing branch is made.

    Raises:
        ValueError: the folder cannot be pushed, or not to this repository.
    """
    check_repo_id(repo_id)
    if create_pr and (private or revision):
        raise ValueError("--create-pr goes to main of a repository that exists; leave --private and --revision out")
    upload = collect(folder)
    check_files(upload, repo_id)
    if upload.kind == "model" and not upload.foreign_code:
        check_loading(upload.folder)
    plan = Plan(upload, repo_id, revision or "main", create_pr, private)
    try:
        with plain_errors(repo_id):
            read_branch(plan)
    except HubError as error:
        plan.why_unknown = str(error)
        return plan
    if problem := repository_problem(plan):
        raise ValueError(f"{repo_id}: {problem}")
    return plan


def repository_problem(plan: Plan) -> str:
    """Return why the repository cannot take the push; empty if it can."""
    if plan.create_pr and not plan.exists:
        return "it is not on the Hub (or the token may not see it), and --create-pr needs one that is"
    if plan.exists and plan.private and not plan.is_private:
        return "it exists and is public; make it private in its settings, or leave --private out"
    # From a repository with both a model and an adapter, loading takes the adapter, with whatever base that names.
    foreign = {"model": ADAPTER_CONFIG, "adapter": "config.json"}.get(plan.upload.kind)
    if foreign in plan.remote_files:
        return f"it holds {foreign}, but {plan.upload.folder} is {KINDS[plan.upload.kind]}; take another repository"
    return ""


def read_branch(plan: Plan) -> None:
    """Ask the Hub for the repository of a plan and the files of its branch, and note them in the plan."""
    api, repo_type = HfApi(), plan.upload.repo_type
    try:
        info = api.repo_info(plan.repo_id, repo_type=repo_type, revision=plan.branch)
        plan.branch_exists = True
    except RevisionNotFoundError:
        info = api.repo_info(plan.repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        return
    tree = api.list_repo_tree(plan.repo_id, repo_type=repo_type, revision=info.sha, recursive=True)
    plan.remote_files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    plan.exists, plan.is_private, plan.parent = True, bool(info.private), info.sha


def compare(path: Path, remote: RepoFile | None) -> str:
    """Compare a local file with the repository's file of its name; return "new", "changed" or "same"."""
    if remote is None:
        return "new"
    if path.stat().st_size != remote.size:
        return "changed"
    if remote.lfs:
        return "same" if digest(path) == remote.lfs.sha256 else "changed"
    content = path.read_bytes()
    git_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return "same" if git_id == remote.blob_id else "changed"


# --- what is sent, and what is checked before ---


def collect(folder: str | Path) -> Upload:
    """List the files of a folder that would be published.

    Raises ValueError unless the folder is exactly one of a model, an adapter and a Space.
    """
    root = Path(folder)
    check_code_files(root)
    files, left_out = {}, []
    for parent, folders, names in os.walk(root):
        for name in sorted(folders + names):
            path = Path(parent, name)
            relative = path.relative_to(root).as_posix()
            if is_not_published(path):
                left_out.append(f"{relative}/" if name in folders else relative)
            elif name in names or path.is_symlink():  # `check_files` refuses a link to a folder
                files[relative] = path
        folders[:] = sorted(name for name in folders if not is_not_published(Path(parent, name)))
    metadata = read_metadata(root / "README.md")
    kinds = {"adapter": ADAPTER_CONFIG in files, "model": "config.json" in files, "space": metadata.sdk is not None}
    found = [kind for kind, is_one in kinds.items() if is_one]
    if len(found) != 1:
        kind = " and ".join(KINDS[kind] for kind in found) or "nothing that can be pushed"
        raise ValueError(f"{root} is {kind}; it needs one of config.json, {ADAPTER_CONFIG} and `sdk:` in README.md")
    return Upload(root, found[0], files, tuple(sorted(left_out)), metadata)


def is_not_published(path: Path) -> bool:
    """Return True if the name of a path, or of the file that it links to, is one that is not published."""
    return any(
        (name.startswith(".") and name not in HIDDEN_BUT_PUBLISHED)
        or any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in NOT_PUBLISHED)
        for name in (path.name, path.resolve().name)
    )


def is_package_code(name: str, path: Path) -> bool:
    """Return True if a file is, byte for byte, what this version of the package writes into folders under that name."""
    if "/" in name or name == "__init__.py":
        return False
    model_code = Path(importlib.util.find_spec("modeling_m2bert").origin).parent
    original = Path(__file__).with_name(name) if name == "handler.py" else model_code / name
    return original.is_file() and original.read_bytes() == path.read_bytes()


def check_files(upload: Upload, repo_id: str):
    """Raise ValueError if a file is missing, damaged or not for the public; the message names all such files.

    Runs none of the folder's code.
    """
    files = upload.files
    has_weights = upload.kind == "space" or any(name.endswith(".safetensors") and "/" not in name for name in files)
    needed = {"README.md, the card": "README.md" in files, "weights as safetensors": has_weights}
    problems = [f"it lacks {what}, {EXPORT_AGAIN}" for what, is_there in needed.items() if not is_there]
    problems += [f"{name} {why}" for name, path in files.items() if (why := file_problem(name, path, upload.folder))]
    problems = problems or list(settings_problems(upload, repo_id))
    if problems:
        raise ValueError(f"{upload.folder} cannot be pushed: {'; '.join(problems)}")


def file_problem(name: str, path: Path, folder: Path) -> str:
    """Return why a file must not be sent; empty if it may.

    Raises ValueError if it is a file of weights that is damaged or holds a value that is not finite.
    """
    within = path.resolve().is_relative_to(folder.resolve())
    if path.is_symlink() and not (path.is_file() and (within or is_package_code(name, path))):
        return "is a link out of the folder, or to no file, put a copy in its place"
    if not path.is_file():
        return "is no plain file, take it out"
    if path.suffix.lower() in PICKLES:
        return "is a pickle, which runs code when it is loaded, take it out"
    is_weights, size = path.suffix == ".safetensors", path.stat().st_size
    if size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = size
            if is_weights:  # only the header of safetensors can hold text
                end = min(size, 8 + int.from_bytes(content[:8], "little"))
            if SECRET.search(content, 0, end):
                return "holds what looks like a token of the Hub or a private key, remove and revoke it"
    local_path = private_path(name, path) if path.suffix in TEXTS | {".json"} else None
    if is_weights:
        with open_weights(path) as tensors:
            local_path = next(filter(HOME_PATH.search, (tensors.metadata() or {}).values()), None)
            for tensor in sorted(tensors.keys()):
                check_finite({tensor: tensors.get_tensor(tensor)}, str(path))
    return f"names paths of this machine ({local_path}), remove them, or use `m2bert export`" if local_path else ""


def private_path(name: str, path: Path) -> str | None:
    """Return a path of this machine that a text or JSON file names; None if there is none.

    A record (`RECORDS`) may name no path at all.
    """
    is_vocabulary = PurePosixPath(name).name in VOCABULARIES
    if path.suffix != ".json":
        found = HOME_PATH.search(path.read_text(encoding="utf-8", errors="replace"))
        return found[0] if found and not is_vocabulary else None
    content = parse_json(read_text(path), str(path))
    if name in RECORDS and without_private(content) != content:
        return "a path in a record of training or conversion"
    if is_vocabulary:
        content = {key: value for key, value in content.items() if key != "model"} if isinstance(content, dict) else {}
    return next((text for text in strings(content) if HOME_PATH.search(text) or ABSOLUTE_PATH.fullmatch(text)), None)


def settings_problems(upload: Upload, repo_id: str) -> Iterator[str]:
    """Yield a message for each wrong name of a repository, a base model or a code file in the settings and the card.

    Raises ValueError if a settings file is malformed or does not fit the weights.
    """
    files, folder = upload.files, upload.folder
    check_model_files(folder)
    # The example code on the card says which repository it loads.
    card = read_text(files["README.md"])
    loaded = re.search(r'^path = "([^"]+)"$', card, flags=re.MULTILINE)
    if loaded and loaded[1] != repo_id:
        yield f"README.md loads {loaded[1]!r}, push to that --repo, or export the folder anew for this"
    for name, digits in SCORED.findall(card):  # sentence-transformers and people copy cards to other weights
        if name not in files or not digest(files[name]).startswith(digits):
            yield f"README.md has scores of another {name}, {EXPORT_AGAIN}"
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
        auto_maps = [content.get("auto_map") for content in contents if isinstance(content, dict)]
        classes = [text for text in strings(auto_maps) if "." in text]  # "module.Class" for transformers to import
        if "modules.json" in files:
            classes += [module.type for module in read_modules(files["modules.json"])]
        for module in sorted({name.split(".")[0] for name in classes} - {"sentence_transformers"}):
            # `org/other--module` names code of another repository, at no fixed commit: it is refused here, too.
            if f"{module}.py" not in files:
                yield f"its settings name the code {module!r}, which is not in it, {EXPORT_AGAIN}"


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
    """Load a model in a process that cannot import this package, and raise ValueError if that fails.

    This runs the code of the folder: call it only if there is no `foreign_code`.
    """
    command = [sys.executable, "-P", str(Path(__file__).with_name("clean_load.py")), str(folder)]
    with tempfile.TemporaryDirectory() as modules:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ValueError(f"{folder} does not load where this package is not installed ({reason}); {EXPORT_AGAIN}")


# --- sending, and what is shown ---


def carry_out(plan: Plan) -> CommitInfo | None:
    """Send a plan as one commit on top of the commit that it was compared with. Returns None if nothing is to be sent.

    If the push is interrupted, the branch stays as it was. A repository or branch that was made for the push
    remains, without the new files. Raises HubError, also if the branch has a new commit since the comparison.
    """
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
    """Return the plan as text: the target, a table of the files, and what else will or will not happen."""
    upload = plan.upload
    target = f"{KINDS[upload.kind]} {upload.folder} -> {plan.repo_id}"
    if plan.create_pr:
        lines = [f"{target}, pull request for main"]
    else:
        branch, repository = plan.branch, "exists"
        is_private = plan.is_private if plan.exists else plan.private
        visibility = "private" if is_private else "public"
        if plan.why_unknown:
            repository, visibility = "unknown", "unknown whether private"
        elif not plan.exists:
            repository = "not found (or not visible with this token), so it will be made"
        if not (plan.branch_exists or plan.branch == "main" or plan.why_unknown):
            branch += " (will be made)"
        lines = [f"{target}, branch {branch}, repository {repository}, {visibility}"]
    lines += [f"not compared with what is there: {plan.why_unknown}"] if plan.why_unknown else []
    sizes = {name: path.stat().st_size for name, path in upload.files.items()}
    for name, size in sizes.items():
        status = "" if plan.why_unknown else plan.changes[name]
        large = name.endswith(".safetensors") or size > LARGE_BYTES  # a guess: the Hub decides what LFS stores
        lines.append(f"  {status:8}{size:>14,}  {'LFS' if large else '   '}  {name}")
    lines.append(f"{len(sizes)} files, {sum(sizes.values()):,} bytes")
    lines += [f"  deleted: {name} (of an earlier model)" for name in plan.stale]
    kept = sorted(plan.remote_files.keys() - sizes.keys() - set(plan.stale))
    lines += [f"stays in the repository: {', '.join(kept)}"] if kept else []
    lines += [f"left out, stays here: {', '.join(upload.left_out)}"] if upload.left_out else []
    if upload.kind != "space":  # loading such a repository runs its code
        version, foreign = f"m2bert {__version__}", upload.foreign_code
        same = sum(name.endswith(".py") for name in sizes) - len(foreign)
        lines += [f"code as in {version}, byte for byte: {same} files"] if same else []
        lines += [f"code that differs from {version} or is not part of it: {name}" for name in foreign]
        lines += ["not loaded as a check, which would run that code"] if foreign and upload.kind == "model" else []
    return "\n".join(map(shown, lines))


def describe_commit(plan: Plan, commit: CommitInfo) -> str:
    """Return the address of a commit, and the code that loads the repository at exactly this commit."""
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
