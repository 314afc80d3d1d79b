"""A small Hub on 127.0.0.1 for the real huggingface_hub client: repositories, commits, large files, tokens and errors.

It speaks the routes that pushing and loading use, with the Hub's status codes and error headers. It knows no Xet:
clients are told HF_HUB_DISABLE_XET=1, so nothing here says how uploads over Xet behave.

    with FakeHub() as hub:
        sha = hub.add("org/name", {"config.json": b"{}"})
        subprocess.run([...], env=hub.environment(tmp_path / "home"))
"""

import json
import os
import socket
import threading
from collections.abc import Callable
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import huggingface_hub
from fake_hub_routes import WRITE_TOKEN, Answer, Routes
from fake_hub_store import Commit, Refusal, Repository, history


class Request(NamedTuple):
    method: str
    path: str  # with the query, as the client sent it
    headers: Message  # names in any case
    body: bytes


class FakeHub:
    """The server, running inside `with`.

    Attributes:
        requests: every request so far.
        intercept: called with each Request. It returns None (go on), "drop" (read half of the body, then close the
            connection), "lose" (do it, then close without an answer), or (status, headers, body) to answer instead.
    """

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
        return list(history(self.repositories[kind, repo_id].at(revision)))

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


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self):
        action = self.hub.intercept(Request(self.command, self.path, self.headers, b""))
        body = self.read_body(half=action == "drop")
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, self.path, self.headers, body))
            if action == "drop":
                return self.hang_up()
            if isinstance(action, tuple):
                return self.send(*action)
            try:
                answer = Routes(self.hub, self.command, self.path, self.headers, body).answer()
            except Refusal as error:
                headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
                answer = Answer(json.dumps({"error": error.message}).encode(), headers, error.status)
        return self.hang_up() if action == "lose" else self.send(answer.status, answer.headers, answer.content)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if half:
                    return parts[0]
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0) // (2 if half else 1))

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, status: int, headers: dict[str, str], content: bytes):
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))} | headers
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
