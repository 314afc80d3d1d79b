"""Ask the Hub once whether it answers, before its clients ask for every file six times."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from m2bert.terminal import one_line

SECONDS = 5  # to wait for a connection, and for an answer


@contextmanager
def hub_or_cache(repository: str, revision: str | None, kind: str = "model") -> Iterator[str]:
    """Let the clients of the Hub use their cache alone if the Hub does not answer for a repository.

    Args:
        kind: of the repository, `model` or `dataset`.

    Yields:
        Why it does not answer, on one line and without what an address holds of a token; empty if it does.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    reason = ""
    try:
        HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=SECONDS)
    except HFValidationError:  # a path, of which the Hub's clients ask nothing
        pass
    except HfHubHTTPError as error:  # it answers: that there is no such repository, or that it has a failure
        reason = plain(error) if error.response.status_code >= 500 else ""
    except Exception as error:  # of httpx or httpx2: which of them depends on the version of huggingface_hub
        reason = plain(error)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(reason)
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = before


def plain(error: Exception) -> str:
    """Return an error's text on one line, its addresses without the user or token that they may hold."""
    return re.sub(r"//[^/@\s]*@", "//", one_line(error))
