"""What the fake Hub keeps: repositories with their commits and refs, and the Hub's word for what is not there."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

LARGE = (".safetensors", ".bin", ".pt", ".onnx")


class Commit(NamedTuple):
    sha: str
    message: str
    files: dict[str, bytes]
    parent: "Commit | None"


class Refusal(Exception):
    """An answer with an error status and, where the Hub sends one, its X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code
        super().__init__(message)


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    refs: dict[str, Commit] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        """The commit of a branch, of a pull request (`refs/pr/1`) or of a sha."""
        commits = (commit for head in self.refs.values() for commit in history(head))
        found = self.refs.get(revision) or next((commit for commit in commits if commit.sha == revision), None)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def commit(self, ref: str, message: str, files: dict[str, bytes], parent: Commit | None) -> Commit:
        """Put a new commit of all these files on a ref."""
        contents = [(path, hashlib.sha256(content).hexdigest()) for path, content in sorted(files.items())]
        text = repr((parent and parent.sha, message, contents, len(self.refs)))
        self.refs[ref] = Commit(hashlib.sha1(text.encode()).hexdigest(), message, dict(files), parent)
        return self.refs[ref]


def history(commit: Commit | None) -> Iterator[Commit]:
    """A commit and those before it, newest first."""
    while commit is not None:
        yield commit
        commit = commit.parent


def is_large(path: str, size: int, sample: bytes) -> bool:
    return size > 0 and (path.endswith(LARGE) or size > 10_000_000 or b"\0" in sample)


def oids(path: str, content: bytes) -> tuple[str, str | None]:
    """(git's id of a file, the sha256 if it is kept as a large file)."""
    sha256 = None
    if is_large(path, len(content), content[:512]):
        sha256 = hashlib.sha256(content).hexdigest()
        content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), sha256
