"""What the fake Hub answers: its routes and who may take them, without the network."""

import base64
import hashlib
import json
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from fake_hub_store import LARGE, Commit, Refusal, Repository, history, is_large, oids

WRITE_TOKEN = f"hf_{'w' * 34}"  # may write to the namespace `org`, and read and open pull requests everywhere
READ_TOKEN = f"hf_{'r' * 34}"  # reads everything, writes nothing
DATE = "2024-01-01T00:00:00.000Z"


class Answer(NamedTuple):
    content: bytes
    headers: dict[str, str] = {}
    status: int = 200


def reply(value, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status=status)


class Routes:
    """One request. Tokens are checked as the Hub does: a private repository does not exist for a stranger."""

    def __init__(self, hub, method: str, path: str, headers, body: bytes):
        parts = urlsplit(path)
        self.hub, self.method, self.body, self.headers = hub, method, body, headers
        self.parts, self.query = parts.path.strip("/").split("/"), parse_qs(parts.query)
        self.token = (headers.get("Authorization") or "").removeprefix("Bearer ")

    def answer(self) -> Answer:
        """Raises Refusal where the Hub would answer with an error."""
        if self.parts[0] == "large-files":
            return self.large_file(*self.parts[1:])
        if self.token not in ("", WRITE_TOKEN, READ_TOKEN):
            raise Refusal(401, "Invalid credentials in Authorization header")
        match self.parts:
            case ["api", "whoami-v2"]:
                return self.whoami()
            case ["api", "validate-yaml"]:
                return reply({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                return self.create_repository()
            case ["api", ("models" | "spaces") as kind, org, name, *rest]:
                return self.api(kind.removesuffix("s"), f"{org}/{name}", *map(unquote, rest))
            case ["spaces", org, name, *rest]:
                return self.git("space", f"{org}/{name}", rest)
            case [org, name, *rest] if rest and org != "api":
                return self.git("model", f"{org}/{name}", rest)
        raise Refusal(404, f"no such route: {'/'.join(self.parts)}")

    def whoami(self) -> Answer:
        if not self.token:
            raise Refusal(401, "Invalid username or password.")
        role = "write" if self.token == WRITE_TOKEN else "read"
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return reply({"type": "user", "name": "someone", "orgs": [{"name": "org"}], "auth": access})

    def create_repository(self) -> Answer:
        asked = json.loads(self.body)
        kind, repo_id = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
        self.check_write(repo_id)
        url = f"{self.hub.url}/{'spaces/' if kind == 'space' else ''}{repo_id}"
        if (kind, repo_id) in self.hub.repositories:
            return reply({"error": "You already created this repo", "url": url}, 409)
        if kind == "space" and "sdk" not in asked:
            raise Refusal(400, "sdk is required")
        repository = self.hub.repositories[kind, repo_id] = Repository(asked.get("visibility") == "private")
        patterns = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)
        repository.commit("main", "initial commit", {".gitattributes": patterns.encode()}, None)
        return reply({"url": url, "name": repo_id})

    def check_write(self, repo_id: str):
        if not self.token:
            raise Refusal(401, "Invalid username or password.")
        if self.token != WRITE_TOKEN or not repo_id.startswith("org/"):
            raise Refusal(403, f"You don't have the rights to write to {repo_id}")

    def repository(self, kind: str, repo_id: str) -> Repository:
        found = self.hub.repositories.get((kind, repo_id))
        if found is None or (found.private and not self.token):
            raise Refusal(404 if self.token else 401, "Repository not found", "RepoNotFound")
        return found

    def api(self, kind: str, repo_id: str, action: str = "revision", revision: str = "main", *path: str) -> Answer:
        repository = self.repository(kind, repo_id)
        if action == "branch":
            return self.create_branch(repository, repo_id, revision)
        if action == "refs":
            branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": head.sha}
                        for name, head in repository.refs.items() if not name.startswith("refs/pr/")]  # fmt: skip
            return reply({"branches": branches, "converts": [], "tags": []})
        commit = repository.at(revision)
        match self.method, action:
            case "GET", "revision":
                info = {
                    "id": repo_id,
                    "sha": commit.sha,
                    "private": repository.private,
                    "lastModified": DATE,
                    "tags": [],
                }
                siblings = [{"rfilename": name} for name in commit.files]
                return reply(info | {"siblings": siblings, "gated": "auto" if repository.gated else False})
            case "GET", "tree":
                return reply(self.tree(commit, "/".join(path)))
            case "GET", "commits":
                return reply([{"id": each.sha, "authors": [], "date": DATE, "title": each.message, "message": ""}
                              for each in history(commit)])  # fmt: skip
            case "POST", "preupload":
                return self.preupload(repo_id, commit)
            case "POST", "commit":
                return self.commit(kind, repo_id, repository, revision)
        raise Refusal(404, f"no such route: {self.method} {action}")

    def tree(self, commit: Commit, folder: str) -> list[dict]:
        prefix, found = f"{folder}/" if folder else "", {}
        for name, content in sorted(commit.files.items()):
            if not name.startswith(prefix):
                continue
            sub_folder = name.removeprefix(prefix).rpartition("/")[0]
            if sub_folder and self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
                top = prefix + sub_folder.split("/")[0]
                found[top] = {"type": "directory", "path": top, "oid": "0" * 40, "size": 0}
                continue
            oid, sha256 = oids(name, content)
            found[name] = {"type": "file", "path": name, "oid": oid, "size": len(content)}
            if sha256:
                found[name]["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
        if folder and not found:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        return list(found.values())

    def create_branch(self, repository: Repository, repo_id: str, branch: str) -> Answer:
        self.check_write(repo_id)
        if branch in repository.refs:
            raise Refusal(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.refs[branch] = repository.at(start)
        return reply({})

    def preupload(self, repo_id: str, commit: Commit) -> Answer:
        if "create_pr" not in self.query:
            self.check_write(repo_id)
        files = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            large = is_large(path, asked["size"], base64.b64decode(asked["sample"]))
            there = oids(path, commit.files[path]) if path in commit.files else (None, None)
            mode, oid = ("lfs", there[1]) if large else ("regular", there[0])
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return reply({"files": files})

    def commit(self, kind: str, repo_id: str, repository: Repository, revision: str) -> Answer:
        pull_request = "create_pr" in self.query
        if self.token == READ_TOKEN or not pull_request:
            self.check_write(repo_id)
        parent = repository.at(revision)
        if revision not in repository.refs:
            raise Refusal(404, f"{revision} is no branch", "RevisionNotFound")
        message, files = "", dict(parent.files)
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", parent.sha) != parent.sha:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                files[value["path"]] = self.content(key, value)
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        new = repository.commit(f"refs/pr/{number}" if pull_request else revision, message, files, parent)
        url = f"{self.hub.url}/{'spaces/' if kind == 'space' else ''}{repo_id}"
        answer = {"success": True, "commitOid": new.sha, "commitUrl": f"{url}/commit/{new.sha}"}
        return reply(answer | ({"pullRequestUrl": f"{url}/discussions/{number}"} if pull_request else {}))

    def content(self, key: str, value: dict) -> bytes:
        if key == "file":
            return base64.b64decode(value["content"])
        if key != "lfsFile" or value["oid"] not in self.hub.large_files:
            raise Refusal(400, f"{key} {value['path']}: its content was not uploaded")
        return self.hub.large_files[value["oid"]]

    def git(self, kind: str, repo_id: str, rest: list[str]) -> Answer:
        repository = self.repository(kind, repo_id.removesuffix(".git"))
        match rest:
            case ["info", "lfs", "objects", "batch"]:
                return self.large_file_batch()
            case ["resolve", revision, *path]:
                return self.resolve(repository, unquote(revision), unquote("/".join(path)))
        raise Refusal(404, f"no such route: {'/'.join(rest)}")

    def resolve(self, repository: Repository, revision: str, path: str) -> Answer:
        if repository.gated and self.token != WRITE_TOKEN:
            raise Refusal(403 if self.token else 401, "Access to this model is restricted", "GatedRepo")
        commit = repository.at(revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content, (oid, sha256) = commit.files[path], oids(path, commit.files[path])
        headers = {"ETag": f'"{sha256 or oid}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes",
                   "Content-Type": "application/octet-stream"}  # fmt: skip
        wanted = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not wanted[0] or self.method == "HEAD":
            return Answer(content, headers)
        first, last = int(wanted[0]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return Answer(content[first : last + 1], headers, 206)

    def large_file_batch(self) -> Answer:
        if not self.token:
            raise Refusal(401, "Invalid username or password.")
        objects = []
        for asked in json.loads(self.body)["objects"]:
            there = asked["oid"] in self.hub.large_files
            url = f"{self.hub.url}/large-files/{asked['oid']}"
            actions = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
            objects.append({"oid": asked["oid"], "size": asked["size"]} | ({} if there else {"actions": actions}))
        return reply({"transfer": "basic", "objects": objects})

    def large_file(self, oid: str, verify: str | None = None) -> Answer:
        """Signed addresses outside the Hub proper: no token is asked for."""
        if not verify and hashlib.sha256(self.body).hexdigest() == oid:
            self.hub.large_files[oid] = self.body
        if oid not in self.hub.large_files:
            raise Refusal(400, f"{oid} was not uploaded whole")
        return reply({})
