"""What `m2bert push` shows, sends and leaves alone: the real client against a Hub on 127.0.0.1."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import READ_TOKEN, WRITE_TOKEN, FakeHub
from test_cli import run

from m2bert.hub.push import Plan, collect, describe_commit
from m2bert.terminal import MaskedRecord

METRIC = Path(__file__).parents[2] / "eval" / "metrics" / "ndcg"
REPO = "org/m2bert"
PLACES = ["/revision/", "/repos/create", "/preupload/", "/objects/batch", "/commit/"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits before it tries again
        yield hub


@pytest.fixture
def loaded(monkeypatch):
    """The folders that were loaded in a clean process, which test_push_checks.py does; here it would take long."""
    loaded = []
    monkeypatch.setattr("m2bert.hub.push.check_loading", loaded.append)
    return loaded


@pytest.fixture
def push(monkeypatch, capsys, loaded):
    """(exit code, stdout, stderr) of `m2bert push`."""
    return lambda *arguments: run(monkeypatch, capsys, "push", *arguments)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def writes(hub):
    return [f"{request.method} {request.path}" for request in hub.requests if request.method not in ("GET", "HEAD")]


def refused(push, message, *arguments):
    """The push ends with one line that says `message`."""
    code, _, err = push(*arguments)
    assert code == 2
    [line] = [line for line in err.splitlines() if line.startswith("m2bert: ")]
    assert message in line
    assert "Traceback" not in err


# --- what is shown ---


def test_by_default_it_shows_everything_and_sends_nothing(push, hub, folder):
    (folder / "__pycache__").mkdir()
    (folder / ".env").write_text("secret")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "optimizer.bin").write_text("state")
    code, out, _ = push(folder, "--repo", REPO)
    assert code == 0
    assert out.endswith("nothing was sent; add --no-dry-run to send it\n")
    size = (folder / "model.safetensors").stat().st_size
    assert any(line.split() == ["new", f"{size:,}", "LFS", "model.safetensors"] for line in out.splitlines())
    assert "branch main, repository not found (or not visible with this token), so it will be made, public" in out
    assert "left out, stays here: .env, __pycache__/, checkpoint-10/" in out
    assert not writes(hub)
    assert not hub.repositories


def test_the_dry_run_of_a_public_repository_needs_no_token(push, hub, folder, monkeypatch, tmp_path):
    hub.connect(monkeypatch, tmp_path / "home", token=None)
    files = contents(folder)
    other = {name: files[name][:-1] + b"!" for name in ("config.json", "model.safetensors")}  # of the same length
    hub.add(REPO, files | other | {"requirements.txt": b"", "notes.md": b"mine"})
    code, out, _ = push(folder, "--repo", REPO)
    status = {line.split()[-1]: line.split()[0] for line in out.splitlines() if line.startswith("  ")}
    assert code == 0
    assert {name for name in status if status[name] == "changed"} == {*other, "requirements.txt"}
    assert {name for name in status if status[name] == "same"} == files.keys() - {*other, "requirements.txt"}
    assert "stays in the repository: notes.md" in out
    assert not writes(hub)
    assert not [request for request in hub.requests if "Authorization" in request.headers]


@pytest.mark.parametrize(("name", "value"), [("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")])
def test_without_the_hub_the_local_part_is_shown(push, hub, folder, monkeypatch, name, value):
    monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    code, out, _ = push(folder, "--repo", REPO)
    assert code == 0
    assert "not compared with what is there: the Hub cannot be reached" in out
    assert "model.safetensors" in out
    assert "new" not in {line.split()[0] for line in out.splitlines()}
    refused(push, "cannot be reached", folder, "--repo", REPO, "--no-dry-run")


def test_code_that_this_package_did_not_write_is_named_and_not_run(push, hub, folder, loaded):
    _, out, _ = push(folder, "--repo", REPO)
    total = len(list(folder.glob("*.py")))
    assert f"byte for byte: {total} files" in out
    assert "differs" not in out
    assert loaded == [folder]
    with (folder / "m2bert_layers.py").open("a") as file:
        file.write("\n# mine\n")
    (folder / "extra.py").write_text("")
    _, out, _ = push(folder, "--repo", REPO)
    assert f"byte for byte: {total - 1} files" in out
    assert [line.rpartition(": ")[2] for line in out.splitlines() if "differs" in line] == [
        "extra.py",
        "m2bert_layers.py",
    ]
    assert "not loaded" in out
    assert loaded == [folder]


def test_names_of_files_cannot_steer_the_terminal(push, hub, folder):
    (folder / "a\x1b[2Jb.txt").write_text("")
    hub.add(REPO, {"c\x1b[2Jd.txt": b""})
    _, out, _ = push(folder, "--repo", REPO)
    assert "a\\x1b[2Jb.txt" in out
    assert "c\\x1b[2Jd.txt" in out
    assert "\x1b" not in out


# --- what is sent, deleted and left ---


def test_everything_goes_in_one_commit_and_the_lines_to_load_it_are_shown(push, hub, folder):
    code, out, err = push(folder, "--repo", REPO, "--no-dry-run", "--private")
    assert code == 0, err
    commits = hub.commits(REPO)
    assert [commit.message.split(" with ")[0] for commit in commits] == ["Upload model", "initial commit"]
    assert commits[0].files == contents(folder) | {".gitattributes": commits[1].files[".gitattributes"]}
    assert hub.repositories["model", REPO].private
    assert f"{hub.url}/{REPO}/commit/{commits[0].sha}" in out
    assert f'AutoModel.from_pretrained("{REPO}", revision="{commits[0].sha}", trust_remote_code=True)' in out
    assert f'SentenceTransformer("{REPO}", revision="{commits[0].sha}", trust_remote_code=True)' in out
    before = len(writes(hub))
    assert "nothing to send" in push(folder, "--repo", REPO, "--no-dry-run")[1]
    assert len(writes(hub)) == before
    assert len(hub.commits(REPO)) == 2


STALE = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "m2bert_old.py", "training.json",
         "conversion.json", ".eval_results/m2bert.yaml", "2_Dense/model.safetensors", "added_tokens.json"]  # fmt: skip
KEPT = ["notes.md", "scripts/tool.py", "pytorch_model.bin", ".gitattributes", "app.py", "evaluate_my.py",
        "lora.safetensors", "data/config.json"]  # fmt: skip


def test_stale_weights_code_and_records_go_in_the_same_commit_and_the_rest_stays(push, hub, folder):
    hub.add(REPO, dict.fromkeys([*STALE, *KEPT], b"x") | {"modeling_m2bert.py": b"# old"})
    _, out, _ = push(folder, "--repo", REPO)
    assert all(f"  deleted: {name}" in out for name in STALE)
    assert f"stays in the repository: {', '.join(sorted(KEPT))}" in out
    assert push(folder, "--repo", REPO, "--no-dry-run")[0] == 0
    assert hub.files(REPO) == contents(folder) | dict.fromkeys(KEPT, b"x")
    assert len(hub.commits(REPO)) == 2


def test_from_a_repository_of_others_only_this_packages_scores_are_deleted(push, hub, folder):
    theirs = {"model-00001-of-00002.safetensors": b"theirs", "modeling_other.py": b"", "vocab.txt": b"theirs"}
    hub.add("org/other", theirs | {".eval_results/m2bert.yaml": b"of other weights"})
    assert push(folder, "--repo", "org/other", "--no-dry-run")[0] == 0
    assert hub.files("org/other") == theirs | contents(folder)


def test_a_pull_request_or_a_branch_leaves_main_as_it_is(push, hub, folder):
    theirs = {"pytorch_model.bin": b"pickle", "modeling_m2bert.py": b"# theirs", "old.py": b""}
    hub.add("other/theirs", theirs)
    code, out, err = push(folder, "--repo", "other/theirs", "--create-pr", "--no-dry-run")
    assert code == 0, err
    assert f"{hub.url}/other/theirs/discussions/1" in out
    assert hub.files("other/theirs") == theirs
    assert hub.files("other/theirs", "refs/pr/1") == theirs | contents(folder)
    assert set(hub.repositories) == {("model", "other/theirs")}
    hub.add(REPO, {"config.json": b"{}"})
    arguments = [folder, "--repo", REPO, "--revision", "exp/one"]
    assert "branch exp/one (will be made)" in push(*arguments)[1]
    assert set(hub.repositories["model", REPO].refs) == {"main"}
    assert push(*arguments, "--no-dry-run")[0] == 0
    assert hub.files(REPO, "exp/one") == contents(folder)
    assert hub.files(REPO) == {"config.json": b"{}"}


def test_an_adapter_and_a_space_are_told_by_what_they_hold(push, hub, adapter, loaded):
    code, out, _ = push(adapter, "--repo", "org/adapter", "--no-dry-run")
    assert code == 0
    assert 'PeftModel.from_pretrained(base, "org/adapter", revision=' in out
    assert contents(adapter).items() <= hub.files("org/adapter").items()
    code, out, _ = push(METRIC, "--repo", "org/ndcg", "--no-dry-run")
    assert code == 0
    assert "differs" not in out  # a Space's code is its own
    [create] = [json.loads(r.body) for r in hub.requests if r.path == "/api/repos/create" and b"ndcg" in r.body]
    assert create["sdk"] == "gradio"
    assert 'evaluate.load("org/ndcg", revision=' in out
    assert hub.files("org/ndcg", kind="space")["ndcg.py"] == (METRIC / "ndcg.py").read_bytes()
    assert not loaded


# --- what is refused, and what fails ---


def test_what_is_refused_sends_nothing(push, hub, folder, adapter, monkeypatch, tmp_path):
    (tmp_path / "here" / "is").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names = ["./x", "/x", "a/b/c", "here/is", "m2bert", "org/na me", ""]
    for name in names:
        refused(push, "name it as org/name", folder, "--repo", name)
    refused(push, "leave --private", folder, "--repo", REPO, "--create-pr", "--private")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    refused(push, "damaged", folder, "--repo", REPO, "--no-dry-run")
    (folder / "model.safetensors").write_bytes(weights)
    assert not hub.requests
    hub.add("org/adapter", contents(adapter))
    hub.add(REPO, contents(folder))
    for message, *arguments in [
        ("holds adapter_config.json", folder, "--repo", "org/adapter", "--no-dry-run"),
        ("holds adapter_config.json", folder, "--repo", "org/adapter", "--create-pr"),
        ("holds config.json", adapter, "--repo", REPO, "--no-dry-run"),
        ("exists and is public", folder, "--repo", REPO, "--private", "--no-dry-run"),
        ("--create-pr needs one", folder, "--repo", "other/none", "--create-pr", "--no-dry-run"),
    ]:
        refused(push, message, *arguments)
    assert not writes(hub)


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (None, REPO, "or there is none; run `hf auth login`"),
        ("hf_wrong", REPO, "does not accept the token"),
        (READ_TOKEN, REPO, "may not write to org/m2bert"),
        (WRITE_TOKEN, "other/m2bert", "may not write to other/m2bert"),
        (READ_TOKEN, "org/there", "may not write to org/there"),
    ],
)
def test_what_the_token_may_not_do_is_one_line(push, hub, folder, monkeypatch, tmp_path, token, repo, message):
    hub.connect(monkeypatch, tmp_path / "home", token)
    hub.add("org/there", {})
    refused(push, message, folder, "--repo", repo, "--no-dry-run")
    assert hub.files("org/there") == {}
    assert set(hub.repositories) == {("model", "org/there")}


def test_another_commit_in_between_is_not_overwritten(push, hub, folder):
    hub.add(REPO, {})

    def meanwhile(request):
        if "/preupload/" in request.path:
            repository = hub.repositories["model", REPO]
            repository.commit("main", "theirs", {"theirs.txt": b""}, repository.at("main"))

    hub.intercept = meanwhile
    refused(push, "got another commit meanwhile", folder, "--repo", REPO, "--no-dry-run")
    assert hub.files(REPO) == {"theirs.txt": b""}


@pytest.mark.parametrize("place", ["/large-files/", *PLACES[2:]])
def test_a_broken_connection_leaves_main_as_it_was_and_a_second_run_completes_it(push, hub, folder, place):
    hub.add(REPO, {"config.json": b"{}"})
    hub.intercept = lambda request: "drop" if place in request.path else None
    refused(push, "the Hub cannot be reached", folder, "--repo", REPO, "--no-dry-run")
    assert hub.files(REPO) == {"config.json": b"{}"}
    assert len(hub.commits(REPO)) == 1
    hub.intercept = lambda request: None
    assert push(folder, "--repo", REPO, "--no-dry-run")[0] == 0
    assert hub.files(REPO) == contents(folder)
    assert len(hub.commits(REPO)) == 2


def test_a_lost_answer_is_no_second_commit(push, hub, folder):
    hub.add(REPO, {})
    hub.intercept = lambda request: "lose" if "/commit/" in request.path else None
    refused(push, "run it again", folder, "--repo", REPO, "--no-dry-run")
    hub.intercept = lambda request: None
    assert "nothing to send" in push(folder, "--repo", REPO, "--no-dry-run")[1]
    assert len(hub.commits(REPO)) == 2


@pytest.mark.parametrize("place", PLACES)
def test_an_answer_of_another_form_is_one_line(push, hub, folder, place):
    hub.intercept = lambda request: (200, {}, b"null") if place in request.path else None
    refused(push, "", folder, "--repo", REPO, "--no-dry-run")


# --- tokens ---


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("status", [200, 403, 500])
def test_the_token_is_never_said_even_if_the_server_repeats_it(push, hub, folder, monkeypatch, caplog, place, status):
    monkeypatch.setattr("huggingface_hub.constants.HF_DEBUG", True)
    monkeypatch.setattr(logging, "_logRecordFactory", MaskedRecord)  # as run_command does

    def echo(request):
        if place in request.path and "Authorization" in request.headers:
            said = request.headers["Authorization"]
            return status, {"X-Error-Message": said, "X-Request-Id": said}, json.dumps({"error": said}).encode()

    hub.intercept = echo
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    for name in ("", "huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2"):
        caplog.set_level(logging.DEBUG, name)
    code, out, err = push(folder, "--repo", REPO, "--no-dry-run")
    assert code == 2
    assert "Traceback" not in err
    assert "authenticated: True" in caplog.text  # the debug log is on
    assert "<token>" in caplog.text
    assert WRITE_TOKEN not in caplog.text + out + err


def test_the_address_of_the_commit_is_shown_without_credentials(folder):
    commit = SimpleNamespace(pr_url=None, commit_url=f"https://me:word@hub/{REPO}/commit/0", oid="0")
    assert describe_commit(Plan(collect(folder), REPO), commit).startswith(f"https://<secret>@hub/{REPO}/commit/0\n")


@pytest.mark.slow
def test_the_command_itself_with_debug_logging_keeps_the_token(hub, folder, tmp_path):
    hub.intercept = lambda request: (
        (403, {}, request.headers["Authorization"].encode()) if "/commit/" in request.path else None
    )
    code = "import logging; logging.basicConfig(level=0); from m2bert.cli import main; main()"
    command = [sys.executable, "-c", code, "push", str(folder), "--repo", REPO, "--no-dry-run"]
    environment = hub.environment(tmp_path / "other_home") | {"HF_DEBUG": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert "m2bert: the token may not write to org/m2bert" in result.stderr
    assert "Send: curl" in result.stderr
    assert WRITE_TOKEN not in result.stdout + result.stderr
