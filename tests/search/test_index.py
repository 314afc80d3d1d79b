"""An index of files: what add, update, sync, delete and rebuild leave, and what search finds."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lancedb")
from m2bert.search import Index  # noqa: E402

MODEL = Path(__file__).parents[2] / "models" / "m2bert-small"
TEXTS = {
    "lease.txt": "The landlord may end the lease with ninety days of notice if the rent is late.",
    "minutes.md": "# Minutes\n\nThe committee approved the budget for the new bridge with nine votes.",
    "bees.txt": "Bees dance in the hive. The angle of the dance tells the others where the flowers are.",
}


@pytest.fixture(scope="module")
def encoder():
    from m2bert.search.encoder import Encoder

    return Encoder(MODEL)


@pytest.fixture(autouse=True)
def _one_encoder(encoder, monkeypatch):
    monkeypatch.setattr("m2bert.search.encoder.Encoder", lambda model, device=None: encoder)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "files" / name).write_text(text)
    return tmp_path / "files"


@pytest.fixture
def index(tmp_path, folder):
    made = Index.open(tmp_path / "index", model=MODEL)
    assert made.add(folder).added == 3
    return made


def names(hits):
    return [Path(hit.path).name for hit in hits]


@pytest.mark.parametrize("mode", ["hybrid", "dense", "bm25"])
def test_the_document_that_answers_is_first_and_its_passage_is_its_text(index, mode):
    [first, *_] = index.search("When can the landlord end the lease?", mode=mode)
    assert first.path.endswith("lease.txt")
    assert index.document(first.id)[first.start : first.end] == first.passage
    assert first.length == len(TEXTS["lease.txt"])


def test_what_is_unchanged_is_not_embedded_again_and_what_changed_is(index, folder):
    report = index.add(folder)
    assert (report.unchanged, report.tokens) == (3, 0)
    (folder / "bees.txt").write_text("Wasps build their nests of paper.")
    report = index.add(folder)
    assert (report.updated, report.unchanged) == (1, 2)
    assert index.search("paper nests of wasps", limit=1)[0].path.endswith("bees.txt")
    assert index.search("dance", mode="bm25") == []


def test_sync_removes_what_is_gone_and_keeps_the_rest(index, folder):
    (folder / "bees.txt").unlink()
    assert index.add(folder).removed == 0
    assert index.add(folder, sync=True).removed == 1
    assert sorted(names(index.search("the", mode="dense"))) == ["lease.txt", "minutes.md"]


def test_an_unreadable_file_is_reported_and_the_others_are_indexed(index, folder):
    (folder / "empty.txt").touch()
    report = index.add(folder)
    assert [Path(path).name for path, _ in report.failures] == ["empty.txt"]
    assert report.unchanged == 3


def test_rows_have_metadata_that_filters(tmp_path):
    index = Index.open(tmp_path / "index", model=MODEL)
    rows = [{"id": f"it's {year}", "text": f"Report of the year {year}.", "year": year} for year in range(2018, 2024)]
    assert index.add(rows).added == 6
    found = index.search("report", filter="year > 2021")
    assert sorted(hit.metadata["year"] for hit in found) == [2022, 2023]
    assert index.delete(["it's 2023"]) == 1
    assert index.delete(filter="year < 2020") == 2
    assert index.info()["documents"] == 3
    with pytest.raises(ValueError, match="filter='yaer > 1'.*year"):
        index.search("report", filter="yaer > 1")
    with pytest.raises(ValueError, match="stands twice"):
        index.add([rows[0], rows[0]])


def test_a_long_document_is_found_by_its_end(tmp_path):
    index = Index.open(tmp_path / "index", model=MODEL)
    filler = "The committee met and talked about the budget of the city. " * 3_000
    index.add([{"id": "long", "text": filler + "The penguin ate a herring."}, {"id": "other", "text": filler}])
    [hit] = index.search("what did the penguin eat?", limit=1)
    assert hit.id == "long"
    assert "herring" in hit.passage


def test_an_index_refuses_vectors_of_another_model_and_a_newer_format(index, encoder, monkeypatch):
    again = Index.open(index.folder)
    monkeypatch.setitem(vars(encoder), "fingerprint", "another")
    with pytest.raises(ValueError, match="m2bert index --rebuild --model"):
        again.search("lease")
    monkeypatch.setattr("m2bert.search.table.FORMAT", 0)
    with pytest.raises(ValueError, match="format 1"):
        Index.open(index.folder)


def test_rebuild_embeds_the_stored_texts(index, folder):
    for path in folder.iterdir():
        path.unlink()
    assert index.rebuild(MODEL) == 3
    assert names(index.search("Where do the bees say the flowers are?", limit=1)) == ["bees.txt"]


def test_near_duplicates_are_found(tmp_path):
    index = Index.open(tmp_path / "index", model=MODEL)
    text = " ".join(f"word{number}" for number in range(300))
    rows = [{"id": "a", "text": text}, {"id": "b", "text": text + " and more"}, {"id": "c", "text": TEXTS["bees.txt"]}]
    index.add(rows)
    [(first, second, share)] = index.duplicates()
    assert {first, second} == {"a", "b"}
    assert share > 0.9


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["search", "lease", "--index", "missing"], "missing does not exist"),
        (["search", "", "--index", "INDEX"], "query is empty"),
        (["index", "missing.txt", "--index", "INDEX"], "missing.txt"),
        (["index", "--index", "INDEX"], "--info"),
        (["index", "--index", "INDEX", "--rebuild"], "--model"),
        (["search", "lease", "--index", "FILE"], "is a file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(index, tmp_path, arguments, named):
    (tmp_path / "file").touch()
    places = {"INDEX": index.folder, "FILE": str(tmp_path / "file")}
    command = [sys.executable, "-m", "m2bert.cli", *(places.get(each, each) for each in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
