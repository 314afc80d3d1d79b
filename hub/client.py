"""Use the Hub's client: check names of repositories, and raise its failures as one line that names the fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from m2bert.terminal import one_line

NETWORK = (HfHubHTTPError.__bases__[0], OfflineModeIsEnabled)  # the client's HTTP library changes its name over time
LOGIN = "run `hf auth login` with a token that may read it (to push: write), or set HF_TOKEN to one"


class HubError(ValueError):
    """The Hub refused, or could not be reached; the message is one line."""


def check_repo_id(repo_id: str, name: str = "--repo"):
    """Raise ValueError, with the setting's `name`, unless it is org/name, and not a folder here."""
    try:
        validate_repo_id(repo_id)
        problem = "" if "/" in repo_id and not Path(repo_id).is_dir() else "a folder here, or without an organization"
    except HFValidationError as error:
        problem = error
    if problem:
        raise ValueError(f"{name} {repo_id!r} is no repository ({problem}); name it as org/name")


@contextmanager
def plain_errors(repo_id: str) -> Iterator[None]:
    """Raise what fails in calls of the client as HubError, without the client's exception: it may repeat what the
    server sent."""
    try:
        yield
    except Exception as error:  # the client wraps some failures, and trusts the form of answers
        raise HubError(one_line(error if isinstance(error, HubError) else explain(error, repo_id))) from None


def explain(error: Exception, repo_id: str) -> str:
    """Return a sentence for an exception of the client, or for the one that it wraps."""
    cause = error
    while not isinstance(cause, (*NETWORK, HfHubHTTPError)) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, RevisionNotFoundError):
        return f"{repo_id} has no such revision; name a branch (--revision)"
    if isinstance(cause, GatedRepoError):
        return f"{repo_id} is gated, and the token's owner has no access; ask for it on the repository's page"
    if isinstance(cause, RepositoryNotFoundError):
        return f"{repo_id} does not exist on the Hub, or needs another token; check the name, or {LOGIN}"
    if isinstance(cause, HfHubHTTPError):
        status, said = cause.response.status_code, " ".join((cause.server_message or "").split())[:300]
        broken = "the Hub is busy or broken; run it again later"
        advice = {
            401: f"the Hub does not accept the token, or there is none; {LOGIN}",
            403: f"the token may not write to {repo_id}; take a token with the right to write there, or another --repo",
            412: f"{repo_id} got another commit meanwhile; run it again to see the changes against that",
            429: broken,
        }.get(status, broken if status >= 500 else "the Hub refused it")
        return f"{advice} (status {status}: {said})"
    what = f"({type(cause).__name__}: {cause})"
    if isinstance(cause, NETWORK):
        return f"the Hub cannot be reached {what}; check the network and run it again"
    return f"{repo_id} could not be read or written {what}"
