"""Push a folder to the Hub: a model, an adapter or a Space, as one commit of everything."""

import importlib.metadata
import re
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import get_token

from m2bert.files import read_text
from m2bert.terminal import shown

from .hub_errors import LOGIN, HubError, plain_errors
from .outgoing import Outgoing, collect
from .outgoing_checks import check_outgoing
from .push_plan import Plan, make_plan
from .repo_id import check_repo_id


def plan_push(
    folder: str | Path, repo_id: str, *, private: bool = False, create_pr: bool = False, revision: str | None = None
) -> Plan:
    """Check a folder, then compare it with the repository. Sends nothing.

    Args:
        folder: of `write_folder`, of an adapter, or of a Space.
        repo_id: org/name.
        private: if the repository is made, make it private.
        create_pr: offer the folder as a pull request to a repository that exists.
        revision: the branch, main by default; made if it is not there.

    Raises:
        ValueError: one line, naming what is missing or wrong and its fix.
    """
    check_repo_id(repo_id)
    outgoing = collect(folder)
    check_outgoing(outgoing)
    check_card_repository(outgoing, repo_id)
    return make_plan(outgoing, repo_id, private=private, create_pr=create_pr, revision=revision)


def check_card_repository(outgoing: Outgoing, repo_id: str):
    """The card's code loads the repository that it is in. Raises ValueError where it loads another."""
    named = re.search(r'^path = "([^"]+)"$', read_text(outgoing.files["README.md"]), flags=re.M)
    if named and named[1] != repo_id:
        raise ValueError(f"README.md of {outgoing.folder} loads {named[1]!r}, and not --repo {repo_id!r}; name that "
                         f"one, or export it anew with --repo {repo_id}")  # fmt: skip


def carry_out(plan: Plan) -> CommitInfo | None:
    """Send what a plan says, as one commit on top of the commit that it was compared with. Cut off in the middle, it
    leaves the branch as it was (a repository or branch that had to be made stays, without the files).

    Returns:
        The commit; None where the repository holds just these files already.

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
    operations = [CommitOperationAdd(name, plan.outgoing.files[name]) for name in added]
    operations += [CommitOperationDelete(name) for name in plan.stale]
    api, repository = HfApi(), {"repo_id": plan.repo_id, "repo_type": plan.outgoing.repo_type}
    with plain_errors(plan.repo_id):
        if not plan.exists:
            api.create_repo(**repository, private=plan.private, space_sdk=plan.outgoing.sdk, exist_ok=True)
        if not plan.branch_exists and plan.branch != "main":
            api.create_branch(**repository, branch=plan.branch, revision=plan.parent, exist_ok=True)
        return api.create_commit(
            **repository,
            operations=operations,
            commit_message=f"Upload {plan.outgoing.kind} with m2bert {importlib.metadata.version('m2bert')}",
            revision=plan.branch,
            create_pr=plan.create_pr,
            parent_commit=plan.parent,
        )


def describe_commit(plan: Plan, commit: CommitInfo) -> str:
    """Where the commit is, and the lines that load exactly it."""
    lines = [commit.pr_url or commit.commit_url]
    pinned = f'"{plan.repo_id}", revision="{commit.oid}"'
    if plan.outgoing.kind == "model":
        lines.append(f"AutoModel.from_pretrained({pinned}, trust_remote_code=True)")
        if "modules.json" in plan.outgoing.files:
            lines.append(f"SentenceTransformer({pinned}, trust_remote_code=True)")
    elif plan.outgoing.kind == "adapter":
        lines.append(f"PeftModel.from_pretrained(base, {pinned})")
    elif "metric" in (plan.outgoing.metadata.tags or []):
        lines.append(f"evaluate.load({pinned})")
    return "\n".join(map(shown, lines))
