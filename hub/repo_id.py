"""Names of repositories on the Hub: org/name, and no path."""

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def check_repo_id(repo_id: str):
    """Raise ValueError unless it is org/name."""
    path = repo_id.startswith(("/", ".", "~")) or repo_id.count("/") > 1 or "\\" in repo_id or Path(repo_id).is_dir()
    if path:
        raise ValueError(f"--repo {repo_id!r} is a path or an address; name it as org/name")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--repo {repo_id!r} is no name of a repository ({error}); name it as org/name") from error
    if "/" not in repo_id:
        raise ValueError(f"--repo {repo_id!r} lacks the user or organisation; name it as org/name")
