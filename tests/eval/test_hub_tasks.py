"""Tasks from a simulated cache of the Hub: what is read, which commits are recorded, what is refused."""

import json
import logging
import shutil
from unittest.mock import Mock

import huggingface_hub
import pytest

from m2bert.eval.tasks.from_hub import full_commit, load_hub_tasks

datasets = pytest.importorskip("datasets")

COMMITS = {"Queries": "1" * 20 + "a" * 20, "Documents": "2" * 20 + "b" * 20}
ROWS = {
    "Queries": [
        {"qid": "q0", "query": "sails", "answer_pids": ["p0"], "dataset": "one"},
        {"qid": "q1", "query": "walls", "answer_pids": ["p1"], "dataset": "one"},
        {"qid": "q2", "query": "rain", "answer_pids": ["p2", "p1"], "dataset": "one"},
        {"qid": "q0", "query": "other", "answer_pids": ["p0"], "dataset": "two"},
    ],
    "Documents": [
        {"pid": "p0", "passage": "boats and sails", "dataset": "one"},
        {"pid": "p1", "passage": None, "dataset": "one"},
        {"pid": "p2", "passage": "clouds", "dataset": "one"},
        {"pid": "p0", "passage": "more", "dataset": "two"},
    ],
}


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory):
    """What `datasets` leaves in its cache after downloading the pair org/Set-Queries and org/Set-Documents."""
    from datasets.packaged_modules.json.json import Json

    folder = tmp_path_factory.mktemp("hub")
    for kind, rows in ROWS.items():
        file = folder / f"{kind}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        name, built = f"set-{kind.lower()}", folder / "built"
        builder = Json(cache_dir=str(built), dataset_name=name, hash=COMMITS[kind], data_files={"test": [str(file)]})
        builder.download_and_prepare()
        cached = folder / "cache" / f"org___{name}" / "default" / "0.0.0" / COMMITS[kind]
        cached.parent.mkdir(parents=True)
        shutil.move(builder.cache_dir, cached)
        info = json.loads((cached / "dataset_info.json").read_text())
        (cached / "dataset_info.json").write_text(json.dumps(info | {"config_name": "default"}))
    return folder / "cache"


@pytest.fixture(autouse=True)
def offline(monkeypatch, hub_cache):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hub_cache)
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)


def test_all_tasks_of_a_pair_with_their_commits(caplog):
    with caplog.at_level(logging.WARNING, "m2bert.eval"):
        one, two = load_hub_tasks("org/Set", None, "test")
    assert (one.name, two.name, one.split, one.source) == ("one", "two", "test", "org/Set")
    assert one.revision == f"{COMMITS['Queries']},{COMMITS['Documents']}"
    assert one.documents == {"p0": "boats and sails", "p2": "clouds"}
    assert one.qrels == {"q0": {"p0": 1}, "q2": {"p2": 1}}
    assert "1 of 3 documents have a null passage; left out with 1 queries" in caplog.text
    assert two.documents == {"p0": "more"}


def test_the_recorded_revision_reads_the_same_data():
    (task,) = load_hub_tasks("org/Set", ["two"], "test")
    assert load_hub_tasks("org/Set", ["two"], "test", task.revision) == [task]
    abbreviated = ",".join(commit[:7] for commit in task.revision.split(","))
    assert load_hub_tasks("org/Set", ["two"], "test", abbreviated) == [task]


def test_the_cache_of_another_commit_is_not_taken():
    """Offline, `datasets` gives what it has, whatever revision is asked for."""
    with pytest.raises(ValueError, match=f"the cache holds commit {COMMITS['Documents']} of 'org/Set-Documents'"):
        load_hub_tasks("org/Set", None, "test", f"{COMMITS['Queries']},{'c' * 40}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("org/Set", ["onne"], "test"), "task 'onne' is not in org/Set; tasks there: one, two; did you mean 'one'"),
        (("org/Set", None, "train"), "data=org/Set: 'org/Set-Queries' is no local path, .* its split 'train' cannot"),
    ],
)
def test_what_is_not_there_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_hub_tasks(*arguments)


def test_an_abbreviated_commit_is_completed(monkeypatch):
    commits = [Mock(commit_id="abcdef0" + "1" * 33), Mock(commit_id="abcdef1" + "2" * 33)]
    api = Mock(**{"return_value.list_repo_commits.return_value": commits})
    monkeypatch.setattr("huggingface_hub.HfApi", api)
    assert full_commit("org/name", "abcdef1") == "abcdef1" + "2" * 33
    assert [full_commit("org/name", other) for other in ("main", "abcdef2")] == ["main", "abcdef2"]
    api.return_value.list_repo_commits.assert_called_with("org/name", repo_type="dataset")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    constants, endpoint = huggingface_hub.constants, "http://user:hf_secret@127.0.0.1:9"
    for module, name in ((constants, "ENDPOINT"), (datasets.config, "HF_ENDPOINT")):
        monkeypatch.setattr(module, name, endpoint)
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    load_dataset, offline = datasets.load_dataset, []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: offline.append(constants.HF_HUB_OFFLINE) or load_dataset(*a, **k)
    )
    with pytest.raises(ValueError, match="'org/gone-Queries' .*the Hub does not answer .*go online") as caught:
        load_hub_tasks("org/gone", None, "test")
    assert offline == [True]  # the cache alone: it would ask six times
    assert "hf_secret" not in str(caught.value)
    assert not constants.HF_HUB_OFFLINE
