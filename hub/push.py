"""Push a folder (a model, an adapter or a Space) to the Hub: check it here, compare it, send it as one commit.

`HfApi.create_commit` sends it: `HfApi.upload_folder` may split a folder into several commits, so that a push that is
cut off could leave half a model on the branch.
"""

import hashlib
import importlib.metadata
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_token

from m2bert.files import digest
from m2bert.terminal import shown

from .checkpoint import ADAPTER_CONFIG
from .export import LEADERBOARD, RECORDS
from .hub_errors import LOGIN, HubError, check_repo_id, plain_errors
from .outputs import OURS
from .push_checks import KINDS, Upload, check_files, check_loading, collect

LARGE_BYTES = 10_000_000


@dataclass(frozen=True)
class Plan:
    """A push that was checked and compared; nothing is sent yet.

    Attributes:
        branch: where the commit goes, or where a pull request is to be merged.
        exists: True if the repository exists; None if the Hub could not be asked, for the reason `unknown`.
        branch_exists: True if the branch does; a missing one starts from main.
        private: of the repository, as it is or will be made.
        parent: the commit that the folder was compared with.
        there: the files of that commit.
    """

    upload: Upload
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
    """Check a folder and compare it with the repository. Sends nothing; a public repository needs no token.

    Args:
        folder: of `write_folder`, of an adapter, or of a Space.
        repo_id: org/name.
        private: if the repository is made, make it private.
        create_pr: offer the folder as a pull request to a repository that exists.
        revision: the branch, main by default; made if it does not exist.

    Raises:
        ValueError: one line that names what is missing or wrong and its fix.
    """
    check_repo_id(repo_id)
    if create_pr and (private or revision):
        raise ValueError("--create-pr offers a change of main in a repository that exists; leave --private and "
                         "--revision out")  # fmt: skip
    upload = collect(folder)
    check_files(upload, repo_id)
    if upload.kind == "model" and not upload.foreign_code:
        check_loading(upload.folder)
    asked = {"upload": upload, "repo_id": repo_id, "branch": revision or "main", "create_pr": create_pr}
    try:
        found = look(repo_id, upload.repo_type, asked["branch"])
    except HubError as error:
        return Plan(**asked, private=private, exists=None, unknown=str(error))
    if create_pr and not found["exists"]:
        raise ValueError(f"{repo_id} is not on the Hub (or the token may not see it); --create-pr needs one that is")
    if found["exists"] and private and not found["private"]:
        raise ValueError(f"{repo_id} exists and is public; make it private in its settings, or leave --private out")
    other = {"model": ADAPTER_CONFIG, "adapter": "config.json"}.get(upload.kind)
    if other in found.get("there", {}):  # loading takes the adapter of such a repository, with whatever base it names
        raise ValueError(f"{repo_id} holds {other}, but {upload.folder} is {KINDS[upload.kind]}; take another "
                         "repository")  # fmt: skip
    return Plan(**asked | {"private": private} | found)


def look(repo_id: str, repo_type: str, branch: str) -> dict:
    """Return what is at a branch, as fields of Plan. Raises HubError if it cannot be read."""
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
    """Return "new", "changed" or "same"."""
    if there is None:
        return "new"
    if path.stat().st_size != there.size:
        return "changed"
    if there.lfs:
        return "same" if digest(path) == there.lfs.sha256 else "changed"
    content = path.read_bytes()
    return "same" if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.blob_id else "changed"


def carry_out(plan: Plan) -> CommitInfo | None:
    """Send a plan as one commit on top of the commit that it was compared with. If it is cut off, the branch stays as
    it was (a repository or branch that had to be made stays, without the files).

    Returns:
        The commit; None if the repository holds just these files already.

    Raises:
        HubError: no token, no right to write, no network, or another commit came in between.
    """
    if get_token() is None:
        raise HubError(f"there is no token for the Hub; {LOGIN}")
    if plan.unknown:
        raise HubError(plan.unknown)
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
            commit_message=f"Upload {plan.upload.kind} with m2bert {importlib.metadata.version('m2bert')}",
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
        visible = "unknown whether private" if plan.unknown else "private" if plan.private else "public"
        known = plan.branch_exists or plan.branch == "main" or plan.unknown
        branch = plan.branch if known else f"{plan.branch} (will be made)"
        lines = [f"{target}, branch {branch}, repository {repository}, {visible}"]
    lines += [f"not compared with what is there: {plan.unknown}"] if plan.unknown else []
    sizes = {name: path.stat().st_size for name, path in upload.files.items()}
    for name, size in sizes.items():
        status = "" if plan.unknown else plan.changes[name]
        large = name.endswith(".safetensors") or size > LARGE_BYTES  # a guess; the server decides
        lines.append(f"  {status:8}{size:>14,}  {'LFS' if large else '   '}  {name}")
    lines.append(f"{len(sizes)} files, {sum(sizes.values()):,} bytes")
    lines += [f"  deleted: {name} (of an earlier model)" for name in plan.stale]
    kept = sorted(plan.there.keys() - sizes.keys() - set(plan.stale))
    lines += [f"stays in the repository: {', '.join(kept)}"] if kept else []
    lines += [f"left out, stays here: {', '.join(upload.left_out)}"] if upload.left_out else []
    if upload.kind != "space":  # who loads the repository runs its code
        version, foreign = f"m2bert {importlib.metadata.version('m2bert')}", upload.foreign_code
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
