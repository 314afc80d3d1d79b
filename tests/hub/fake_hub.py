"""A small Hub on 127.0.0.1 for the real huggingface_hub client: repositories, commits, large files, tokens and errors.

It speaks the routes that pushing and loading use, with the Hub's status codes and error headers. It knows no Xet:
clients are told HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub

WRITE_TOKEN = f"hf_{'w' * 34}"  # may write to the namespace `org`, and read and open pull requests everywhere
READ_TOKEN = f"hf_{'r' * 34}"  # reads everything, writes nothing
LARGE = (".safetensors", ".bin", ".pt", ".onnx")


class Request(NamedTuple):
    method: str
    path: str  # with the query, as the client sent it
    headers: Message  # names in any case
    body: bytes


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes


class Commit(NamedTuple):
    sha: str
    message: str
    files: dict[str, bytes]
    parent: "Commit | None"


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    refs: dict[str, Commit] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, of a pull request (`refs/pr/1`) or of a sha."""
        known = {commit.sha: commit for head in self.refs.values() for commit in history(head)} | self.refs
        return known.get(revision)

    def commit(self, ref: str, message: str, files: dict[str, bytes], parent: Commit | None) -> Commit:
        """Put a new commit of all these files on a ref."""
        contents = [(path, hashlib.sha256(content).hexdigest()) for path, content in sorted(files.items())]
        text = repr((parent and parent.sha, message, contents, len(self.refs)))
        self.refs[ref] = Commit(hashlib.sha1(text.encode()).hexdigest(), message, dict(files), parent)
        return self.refs[ref]


def history(commit: Commit | None) -> list[Commit]:
    """A commit and those before it, newest first."""
    return [] if commit is None else [commit, *history(commit.parent)]


def reply(value, status: int = 200) -> Answer:
    return Answer(status, {}, json.dumps(value).encode())


def refusal(status: int, message: str, code: str | None = None) -> Answer:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer(status, headers, json.dumps({"error": message}).encode())


def is_large(path: str, size: int, sample: bytes) -> bool:
    return size > 0 and (path.endswith(LARGE) or size > 10_000_000 or b"\0" in sample)


def oids(path: str, content: bytes) -> tuple[str, str | None]:
    """(git's id of a file, the sha256 if it is kept as a large file)."""
    sha256 = None
    if is_large(path, len(content), content[:512]):
        sha256 = hashlib.sha256(content).hexdigest()
        content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), sha256


class FakeHub:
    """The server, running inside `with`. `intercept` is called with each request. It returns None (go on), "drop" (read
    half of the body, then close the connection), "lose" (do it, then close without an answer), or an answer."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.intercept: Callable[[Request], str | tuple | None] = lambda request: None
        self.lock = threading.Lock()

    def __enter__(self) -> "FakeHub":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], kind="model", private=False, gated=False) -> str:
        """Make a repository with one commit; its sha."""
        repository = self.repositories[kind, repo_id] = Repository(private, gated)
        return repository.commit("main", "initial commit", files, None).sha

    def files(self, repo_id: str, revision="main", kind="model") -> dict[str, bytes]:
        return dict(self.repositories[kind, repo_id].at(revision).files)

    def commits(self, repo_id: str, revision="main", kind="model") -> list[Commit]:
        """Newest first."""
        return history(self.repositories[kind, repo_id].at(revision))

    def environment(self, home, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """The whole environment of a process that is to talk to this server; `home` is its (empty) HF_HOME."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": token or "", "HF_HOME": str(home)}
        return kept | ours | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}

    def connect(self, monkeypatch, home, token: str | None = WRITE_TOKEN):
        """Let this very process talk to the server. huggingface_hub has read its environment already."""
        changed = {"ENDPOINT": self.url, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False, "HF_HOME": str(home)}
        for name, value in (changed | {"HF_TOKEN_PATH": str(home / "token")}).items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        for name in ("HF_TOKEN", "NO_PROXY"):
            monkeypatch.setenv(name, self.environment(home, token)[name])
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)

    def answer(self, request: Request) -> Answer:
        """What the Hub says. A private repository does not exist for a stranger."""
        parts = urlsplit(request.path)
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", WRITE_TOKEN, READ_TOKEN):
            return refusal(401, "Invalid credentials in Authorization header")
        match [unquote(part) for part in parts.path.strip("/").split("/")]:
            case ["large-files", oid, *verify]:  # signed addresses outside the Hub proper: no token is asked for
                if not verify and hashlib.sha256(request.body).hexdigest() == oid:
                    self.large_files[oid] = request.body
                return reply({}) if oid in self.large_files else refusal(400, f"{oid} was not uploaded whole")
            case ["api", "validate-yaml"]:
                return reply({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                return self.create_repository(token, json.loads(request.body))
            case ["api", ("models" | "spaces") as kinds, org, name, *rest]:
                kind, repo_id = kinds.removesuffix("s"), f"{org}/{name}"
            case ["spaces", org, name, *rest]:
                kind, repo_id = "space", f"{org}/{name.removesuffix('.git')}"
            case [org, name, *rest]:
                kind, repo_id = "model", f"{org}/{name.removesuffix('.git')}"
        repository = self.repositories.get((kind, repo_id))
        if repository is None or (repository.private and not token):
            return refusal(404 if token else 401, "Repository not found", "RepoNotFound")
        pull_request = "create_pr" in parse_qs(parts.query)
        denied = None if pull_request and token == WRITE_TOKEN else self.denied(token, repo_id)
        action, revision, *path = rest if len(rest) > 1 else ["revision", "main"]
        if action == "info":  # /info/lfs/objects/batch
            return self.large_file_addresses(json.loads(request.body)) if token else denied
        if action == "branch":
            start = json.loads(request.body or b"{}").get("startingPoint", "main")
            if not denied:
                repository.refs[revision] = repository.at(start)
            return denied or reply({})
        commit = repository.at(revision)
        if commit is None:
            return refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if action == "resolve":
            return self.resolve(repository, commit, token, "/".join(path))
        if action == "tree":
            found = [entry(name, content) for name, content in sorted(commit.files.items())]
            found = [each for each in found if each["path"].startswith("/".join(path))]
            return reply(found) if found or not path else refusal(404, "no such folder", "EntryNotFound")
        if action == "preupload":
            return denied or self.upload_modes(commit, json.loads(request.body)["files"])
        if action == "commit":
            lines = [json.loads(line) for line in request.body.splitlines()]
            return denied or self.commit(repo_id, kind, revision, lines, pull_request)
        siblings = [{"rfilename": name} for name in commit.files]
        about = {"id": repo_id, "sha": commit.sha, "private": repository.private, "gated": repository.gated}
        return reply(about | {"siblings": siblings, "tags": []})

    def denied(self, token: str, repo_id: str) -> Answer | None:
        """The refusal for a token that may not write to a repository."""
        if not token:
            return refusal(401, "Invalid username or password.")
        allowed = token == WRITE_TOKEN and repo_id.startswith("org/")
        return None if allowed else refusal(403, f"You don't have the rights to write to {repo_id}")

    def create_repository(self, token: str, asked: dict) -> Answer:
        kind, repo_id = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
        if denied := self.denied(token, repo_id):
            return denied
        url = f"{self.url}/{'spaces/' if kind == 'space' else ''}{repo_id}"
        if (kind, repo_id) in self.repositories:
            return reply({"error": "You already created this repo", "url": url}, 409)
        patterns = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)
        self.add(repo_id, {".gitattributes": patterns.encode()}, kind, asked.get("visibility") == "private")
        return reply({"url": url, "name": repo_id})

    def large_file_addresses(self, asked: dict) -> Answer:
        for each in asked["objects"]:
            if each["oid"] not in self.large_files:
                url = f"{self.url}/large-files/{each['oid']}"
                each["actions"] = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
        return reply({"transfer": "basic", "objects": asked["objects"]})

    def upload_modes(self, commit: Commit, asked: list[dict]) -> Answer:
        files = []
        for each in asked:
            path = each["path"]
            large = is_large(path, each["size"], base64.b64decode(each["sample"]))
            oid = oids(path, commit.files[path])[large] if path in commit.files else None
            mode = "lfs" if large else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return reply({"files": files})

    def commit(self, repo_id: str, kind: str, revision: str, lines: list[dict], pull_request: bool) -> Answer:
        repository = self.repositories[kind, repo_id]
        parent, message = repository.at(revision), ""
        files = dict(parent.files)
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", parent.sha) != parent.sha:
                    return refusal(412, "A commit has happened since. Please refresh and try again.")
            elif key == "deletedFile":
                del files[value["path"]]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.large_files[value["oid"]]
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        new = repository.commit(f"refs/pr/{number}" if pull_request else revision, message, files, parent)
        url = f"{self.url}/{'spaces/' if kind == 'space' else ''}{repo_id}"
        answer = {"success": True, "commitOid": new.sha, "commitUrl": f"{url}/commit/{new.sha}"}
        return reply(answer | ({"pullRequestUrl": f"{url}/discussions/{number}"} if pull_request else {}))

    def resolve(self, repository: Repository, commit: Commit, token: str, path: str) -> Answer:
        if repository.gated and token != WRITE_TOKEN:
            return refusal(403 if token else 401, "Access to this model is restricted", "GatedRepo")
        if path not in commit.files:
            return refusal(404, "Entry not found", "EntryNotFound")
        oid, sha256 = oids(path, commit.files[path])
        return Answer(200, {"X-Repo-Commit": commit.sha, "ETag": f'"{sha256 or oid}"'}, commit.files[path])


def entry(name: str, content: bytes) -> dict:
    """A file in the answer of /tree."""
    oid, sha256 = oids(name, content)
    lfs = {"lfs": {"oid": sha256, "size": len(content), "pointerSize": 130}} if sha256 else {}
    return {"type": "file", "path": name, "oid": oid, "size": len(content)} | lfs


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_request(self):
        action = self.hub.intercept(Request(self.command, self.path, self.headers, b""))
        request = Request(self.command, self.path, self.headers, self.read_body(half=action == "drop"))
        with self.hub.lock:
            self.hub.requests.append(request)
            answer = None if isinstance(action, tuple) or action == "drop" else self.hub.answer(request)
        if action in ("drop", "lose"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, headers, content = answer or action
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))} | headers
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_body(self, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0) // (2 if half else 1))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
            if half:
                return parts[0]
        self.rfile.readline()
        return b"".join(parts)
