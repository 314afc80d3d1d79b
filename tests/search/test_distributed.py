"""`ClusterIndex`: the table of one process, by workers of which one is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from m2bert.search import Index
from m2bert.search import distributed as module
from m2bert.search.distributed import ClusterIndex

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'm2bert[ray]'")
pytestmark = pytest.mark.slow
sys.path.insert(0, str(Path(__file__).parent))
import ray_words  # noqa: E402

DRIVER = Path(__file__).parent / "ray_words.py"
DOCUMENTS = 60


def text_of(number, edition="one"):
    filler = " ".join(f"w{(number * 7 + step) % 90}" for step in range(100 + number))
    return f"document{number} in edition{edition} {filler}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two workers: its address, and the folder where each writes what it embeds."""
    embedding = tmp_path_factory.mktemp("embedding")
    os.environ["EMBEDDING"] = str(embedding)
    yield ray_words.connect("local", num_cpus=2, include_dashboard=False).address_info["gcs_address"], embedding
    del os.environ["EMBEDDING"]
    ray.shutdown()


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr("m2bert.search.encoder.Encoder", ray_words.WordEncoder)


@pytest.fixture
def files(tmp_path):
    """Texts, rows with metadata, one that cannot be read, and two whose `year` are a number and a text."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(DOCUMENTS):
        (folder / f"{number:02d}.txt").write_text(text_of(number))
    (folder / "rows.csv").write_text("\n".join(["id,text,rank", *(f"{n},row{n} {text_of(n)},{n}" for n in range(5))]))
    (folder / "year.jsonl").write_text('{"id": "a", "text": "the first year", "year": 2001}')
    (folder / "year2.jsonl").write_text('{"id": "b", "text": "the second year", "year": "unknown"}')
    (folder / "nested.jsonl").write_text('{"id": "c", "text": "nested", "number": 9007199254740993}')
    (folder / "broken.pdf").write_bytes(b"no PDF")
    return folder


def stored(index):
    index.table.refresh()
    names = ["id", "path", "digest", "text", "words", "pages", "spans", "vectors", "tokens"]
    rows = [row for batch in index.table.batches([*names, *index.table.kinds]) for row in batch]
    assert max(Counter(row["id"] for row in rows).values()) == 1
    return {row["id"]: row for row in rows}


def check_equal(index, single):
    """Both hold the same rows and answer alike."""
    index.table.refresh()
    ours, theirs = stored(index), stored(single)
    assert ours.keys() == theirs.keys()
    for id, row in ours.items():
        vectors, expected = np.array(row.pop("vectors")), np.array(theirs[id].pop("vectors"))
        np.testing.assert_array_equal(vectors, expected)
        assert row == theirs[id]
    for mode in ("bm25", "dense", "hybrid"):
        for query in ("document7 w5 w12", "row3", "the first year"):
            found, expected = ({hit.id: hit for hit in each.search(query, 5, mode)} for each in (index, single))
            assert found.keys() == expected.keys()
            for id, hit in found.items():
                assert hit._replace(score=0) == expected[id]._replace(score=0)
                assert hit.score == pytest.approx(expected[id].score, abs=1e-5)
    assert index.info()["not yet in the index of words"] == 0


def counts(report):
    return report.added, report.updated, report.unchanged, report.removed, sorted(report.failures)


def embedded_by(folder):
    """Which documents each process has embedded."""
    return {int(path.name): path.read_text().split() for path in folder.iterdir() if path.name.isdigit()}


def kill_one(folder, killed):
    """Kill a worker once it has begun to embed."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not killed:
        killed += list(embedded_by(folder))[:1]
        time.sleep(0.02)
    os.kill(killed[0], signal.SIGKILL)


def test_with_a_worker_killed_midway_the_table_is_that_of_one_process(cluster, files, tmp_path):
    address, embedding = cluster
    single = Index.open(tmp_path / "single", "words")
    expected = single.add(files)
    index, killed = ClusterIndex.open(tmp_path / "index", "words", ray=address), []
    killer = threading.Thread(target=kill_one, args=(embedding, killed))
    killer.start()
    report = index.add(files)
    killer.join()
    by = embedded_by(embedding)
    assert 0 < len(by[killed[0]]) < DOCUMENTS
    assert len(by) >= 2
    twice = sum(map(len, by.values())) - expected.added
    assert twice > 0  # what the killed one had begun was embedded again
    assert counts(report) == counts(expected)
    assert len(report.failures) == 3
    assert report.tokens == expected.tokens
    check_equal(index, single)

    version = index.table.version
    again, single_again = index.add(files), single.add(files)
    assert counts(again) == counts(single_again)
    assert again.added == again.updated == again.tokens == 0
    assert index.table.version == version
    assert sum(map(len, embedded_by(embedding).values())) == twice + expected.added

    for number in range(0, DOCUMENTS, 7):
        (files / f"{number:02d}.txt").write_text(text_of(number, "two"))
    (files / "rows.csv").write_text("\n".join(["id,text,rank,note", *(f"{n},row{n} anew,{n},x" for n in (0, 3, 9))]))
    (files / "new.txt").write_text(text_of(99))
    (files / "01.txt").unlink()
    versions = []
    index.table.commit, commit = lambda *args: versions.append(commit(*args)), index.table.commit
    report, expected = index.add(files, sync=True), single.add(files, sync=True)
    assert len(versions) == 1
    assert counts(report) == counts(expected)
    assert report.updated > 0 < report.removed
    check_equal(index, single)


def test_a_driver_killed_before_the_commit_leaves_the_index_as_it_was(cluster, files, tmp_path):
    address, _ = cluster
    folder = tmp_path / "index"
    index = ClusterIndex.open(folder, "words", ray=address)
    index.add(sorted(files.glob("[0-2]*.txt")))
    before = stored(index)
    for number in range(0, DOCUMENTS, 7):
        (files / f"{number:02d}.txt").write_text(text_of(number, "two"))
    driver = subprocess.Popen([sys.executable, DRIVER, address, folder, files], stdout=subprocess.PIPE, text=True)
    assert int(driver.stdout.readline()) >= 2  # fragments are written
    with pytest.raises(ValueError, match="another process writes"):
        index.add(files)
    driver.kill()
    driver.wait()
    for id, row in stored(Index.open(folder)).items():  # with columns for what was to come
        assert {name: value for name, value in row.items() if value is not None} == before.pop(id)
    assert not before
    assert Path(index.search("document7 w5", 1)[0].path).name == "07.txt"
    single = Index.open(tmp_path / "single", "words")
    single.add(files)
    assert index.add(files).updated > 0
    check_equal(index, single)


def test_a_failure_of_a_worker_is_one_line_and_commits_nothing(cluster, files, tmp_path):
    address, embedding = cluster
    index = ClusterIndex.open(tmp_path / "index", "words", ray=address)
    index.add(files / "00.txt")
    before = stored(index)
    (embedding / "other-weights").touch()
    with pytest.raises(ValueError, match="model=words has other weights on .*nothing was committed"):
        index.add(files)
    (embedding / "other-weights").unlink()
    (files / "50.txt").write_text("poison")
    with pytest.raises(ValueError, match="poison is not finite.*nothing was committed"):
        index.add(files)
    assert stored(index).keys() == before.keys()


def test_refusals_are_one_line(cluster, tmp_path, monkeypatch):
    def refused(ray, problem):
        with pytest.raises(ValueError, match=problem):
            ClusterIndex.open(tmp_path / "index", "words", ray=ray)

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])
    refused(cluster[0], "the cluster has 2; name object storage")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for wrong in ("127.0.0.1:9", "garbage", "ray://127.0.0.1:9"):
        refused(wrong, f"ray={wrong} cannot be reached")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    refused("auto", r"pip install 'm2bert\[ray\]'")
    assert not (tmp_path / "index").exists()
