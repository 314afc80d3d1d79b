"""Failures of the Hub as one line that names the fix, without a token in it."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from m2bert.terminal import one_line

NETWORK = (HfHubHTTPError.__bases__[0], OfflineModeIsEnabled)  # the client's HTTP library changes its name over time
KNOWN = (*NETWORK, HfHubHTTPError, LocalTokenNotFoundError)
LOGIN = "run `hf auth login` with a token that may write, or set HF_TOKEN to one"


class HubError(ValueError):
    """The Hub refused, or could not be reached; the message is one line."""


@contextmanager
def plain_errors(repo_id: str) -> Iterator[None]:
    """Raise whatever fails in calls of the client as HubError, with no exception of the client behind it: its text may
    repeat what the server sent."""
    failure = None
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # the client wraps some failures, and reads answers trustingly
        failure = HubError(one_line(explain(error, repo_id)))
    if failure:
        raise failure


def explain(error: Exception, repo_id: str) -> str:
    """A sentence for an exception of the client, or for the one that it wraps."""
    cause = error
    while not isinstance(cause, KNOWN) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, LocalTokenNotFoundError):
        return f"there is no token for the Hub; {LOGIN}"
    if isinstance(cause, RevisionNotFoundError):
        return f"{repo_id} has no such revision; name a branch (--revision)"
    if isinstance(cause, GatedRepoError):
        return f"{repo_id} is gated, and the token's owner has no access; ask for it on the repository's page"
    if isinstance(cause, HfHubHTTPError):
        return explain_status(cause, repo_id)
    if isinstance(cause, NETWORK):
        reason = f"{type(cause).__name__}: {cause}"
        return (
            f"the Hub cannot be reached ({reason}); check the network, and run it again: it goes on from what is there"
        )
    return f"{repo_id} could not be read or written ({type(cause).__name__}: {cause})"


def explain_status(error: HfHubHTTPError, repo_id: str) -> str:
    status, said = error.response.status_code, " ".join((error.server_message or "").split())[:300]
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo_id} does not exist on the Hub, or the token may not see it; check --repo, or {LOGIN}"
    advice = {
        401: f"the Hub does not accept the token; {LOGIN}",
        403: f"the token may not write to {repo_id}; take a token with the right to write there, or another --repo",
        412: f"{repo_id} got another commit meanwhile; run it again to see the changes against that",
    }.get(status)
    if advice is None:
        advice = (
            "the Hub is busy or broken; run it again later" if status == 429 or status >= 500 else "the Hub refused it"
        )
        said = f"{status}: {said}"
    return f"{advice} ({said or status})"
