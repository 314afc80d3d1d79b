"""What a push would change: the folder beside what the repository holds, in words. Reads only."""

import hashlib
import importlib.metadata
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from m2bert.files import digest
from m2bert.terminal import shown

from .checkpoint import ADAPTER_CONFIG
from .export import LEADERBOARD, RECORDS
from .hub_errors import HubError, plain_errors
from .outgoing import Outgoing

OURS = "modeling_m2bert.py"  # a repository with this file was written by this package
WRITTEN = re.compile(  # names of what `write_folder` writes and loading looks for
    r"(configuration_m2bert|modeling_m2bert|m2bert_\w+|handler)\.py|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|modules|\w*sentence\w*)\.json|vocab\.txt"
    r"|\d+_[A-Z]\w+/(config\.json|model\.safetensors)"
)
LARGE_BYTES = 10_000_000
KINDS = {"model": "a model", "adapter": "an adapter of peft", "space": "a Space"}


@dataclass(frozen=True)
class Plan:
    """A push, worked out and not begun.

    Attributes:
        branch: where the commit goes, or where a pull request is to be merged.
        exists: whether the repository is there; None: it could not be asked, for the reason `unknown`.
        branch_exists: whether the branch is; a missing one starts from main.
        private: of the repository: as it is, or as it will be made.
        parent: the commit that the folder was compared with.
        there: the files of that commit.
    """

    outgoing: Outgoing
    repo_id: str
    branch: str = "main"
    create_pr: bool = False
    private: bool = False
    exists: bool | None = False
    branch_exists: bool = False
    parent: str | None = None
    there: dict[str, RepoFile] = field(default_factory=dict)
    unknown: str = ""

    @cached_property
    def changes(self) -> dict[str, str]:
        """ "new", "changed" or "same" of every file that goes."""
        return {name: compare(path, self.there.get(name)) for name, path in self.outgoing.files.items()}

    @property
    def stale(self) -> list[str]:
        """Files of an earlier model that this package wrote and the folder lacks: they would be taken for the new
        model's, so the same commit deletes them. Nothing else is deleted."""
        if self.outgoing.kind != "model" or self.create_pr:
            return []
        gone = self.there.keys() - self.outgoing.files.keys()
        return sorted(n for n in gone if n in {*RECORDS, LEADERBOARD} or (OURS in self.there and WRITTEN.fullmatch(n)))


def make_plan(
    outgoing: Outgoing, repo_id: str, *, private: bool = False, create_pr: bool = False, revision: str | None = None
) -> Plan:
    """Ask the Hub what is there and compare. Sends nothing; a public repository needs no token.

    Raises:
        ValueError: options that exclude each other, or do not fit what is there.
    """
    branch = check_options(private, create_pr, revision)
    asked = {"outgoing": outgoing, "repo_id": repo_id, "branch": branch, "create_pr": create_pr}
    try:
        found = look(repo_id, outgoing.repo_type, branch)
    except HubError as error:
        return Plan(**asked, private=private, exists=None, unknown=str(error))
    if create_pr and not found["exists"]:
        raise ValueError(
            f"{repo_id} is not on the Hub (or the token may not see it), so no pull request can be made there"
        )
    check_same_kind(outgoing, repo_id, found.get("there", {}))
    if found["exists"] and private and not found["private"]:
        raise ValueError(f"{repo_id} exists and is public; make it private in its settings, or leave --private out")
    return Plan(**asked | {"private": private} | found)


def check_same_kind(outgoing: Outgoing, repo_id: str, there: dict):
    """A repository with both is loaded as the adapter, with whatever base it names: refuse to make one."""
    other = {"model": ADAPTER_CONFIG, "adapter": "config.json"}.get(outgoing.kind)
    if other in there:
        raise ValueError(f"{repo_id} holds {other}, so it is not of the kind of {outgoing.folder}, which is "
                         f"{KINDS[outgoing.kind]}; take a repository of its own")  # fmt: skip


def check_options(private: bool, create_pr: bool, revision: str | None) -> str:
    """The branch. Raises ValueError for options that exclude each other."""
    if create_pr and (private or revision):
        raise ValueError("--create-pr offers a change of main in a repository that exists; leave --private and "
                         "--revision out")  # fmt: skip
    if revision and (revision.startswith("refs/") or set(revision) <= set("0123456789abcdef") and len(revision) == 40):
        raise ValueError(f"--revision {revision!r} is no branch; name one (it is made if it is not there)")
    return revision or "main"


def look(repo_id: str, repo_type: str, branch: str) -> dict:
    """What is at a branch, as fields of Plan. Raises HubError where it cannot be read."""
    api = HfApi()
    with plain_errors(repo_id):
        try:
            info, branch_exists = api.repo_info(repo_id, repo_type=repo_type, revision=branch), True
        except RevisionNotFoundError:
            info, branch_exists = api.repo_info(repo_id, repo_type=repo_type), False
        except RepositoryNotFoundError:
            return {"exists": False}
        tree = api.list_repo_tree(repo_id, repo_type=repo_type, revision=info.sha, recursive=True)
        there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    known = {"exists": True, "branch_exists": branch_exists, "private": bool(info.private)}
    return known | {"parent": info.sha, "there": there}


def compare(path: Path, there: RepoFile | None) -> str:
    """ "new", "changed" or "same"."""
    if there is None:
        return "new"
    if path.stat().st_size != there.size:
        return "changed"
    if there.lfs:
        return "same" if digest(path) == there.lfs.sha256 else "changed"
    content = path.read_bytes()
    return "same" if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.blob_id else "changed"


def describe(plan: Plan) -> str:
    """The plan as a table and a few lines."""
    outgoing, changes = plan.outgoing, plan.changes
    lines = [where(plan)]
    if plan.unknown:
        lines.append(f"not compared with what is there: {plan.unknown}")
    sizes = {name: path.stat().st_size for name, path in outgoing.files.items()}
    for name, size in sizes.items():
        status = "" if plan.unknown else changes[name]
        lines.append(f"  {status:8}{size:>14,}  {'LFS' if is_large(name, size) else '   '}  {name}")
    lines.append(f"{len(sizes)} files, {sum(sizes.values()):,} bytes")
    lines += [f"  deleted: {name} (of an earlier model)" for name in plan.stale]
    kept = sorted(plan.there.keys() - sizes.keys() - set(plan.stale))
    lines += [f"stays in the repository: {', '.join(kept)}"] if kept else []
    lines += [f"left out, stays here: {', '.join(outgoing.left_out)}"] if outgoing.left_out else []
    lines += describe_code(outgoing.code) if outgoing.kind != "space" else []
    return "\n".join(map(shown, lines))


def where(plan: Plan) -> str:
    target = f"{KINDS[plan.outgoing.kind]} {plan.outgoing.folder} -> {plan.repo_id}"
    if plan.create_pr:
        return f"{target}, pull request for main"
    missing = "not found (or not visible with this token), so it will be made"
    repository = {True: "exists", False: missing, None: "unknown"}[plan.exists]
    visible = "unknown whether private" if plan.unknown else "private" if plan.private else "public"
    branch = plan.branch + ("" if plan.branch_exists or plan.branch == "main" or plan.unknown else " (will be made)")
    return f"{target}, branch {branch}, repository {repository}, {visible}"


def describe_code(code: dict[str, bool]) -> list[str]:
    """Who loads the repository runs its code: which of it is this package's."""
    version, foreign = f"m2bert {importlib.metadata.version('m2bert')}", [name for name, own in code.items() if not own]
    own = [f"code as in {version}, byte for byte: {len(code) - len(foreign)} files"] if len(foreign) < len(code) else []
    return own + [f"code that differs from {version} or is not of it: {name}" for name in foreign]


def is_large(name: str, size: int) -> bool:
    """A guess for the table; the server decides when files are sent."""
    return name.endswith(".safetensors") or size > LARGE_BYTES
