"""`Index`: what is added, changed, removed and found; by an encoder that only sums word vectors."""

import json
import os
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from m2bert.search import Index
from m2bert.search import index as module
from m2bert.search import table as table_module
from m2bert.search.documents import Found
from m2bert.search.duplicates import HASHES, minhash, sequences, share, similar_pairs
from m2bert.search.plan import make_plan

from .word_encoder import WINDOW, WordEncoder

NAMES = ["apple", "bridge", "cloud", "desert", "engine", "forest", "garden", "harbor"]
filler = " ".join(f"word{number}" for number in range(20))


def text_of(name):
    return f"All about the {name}. {filler} {name} {name}"


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr("m2bert.search.encoder.Encoder", WordEncoder)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    (folder / "inner").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (folder / ("inner" if number % 2 else ".") / f"{name}.txt").write_text(text_of(name))
    return folder


@pytest.fixture
def index(tmp_path):
    return Index.open(tmp_path / "index", model="words")


def rows_of(*names, **metadata):
    return [{"id": name, "text": text_of(name), **metadata} for name in names]


def stored(index):
    """All documents, as other programs read them."""
    index.table.refresh()
    names = ["id", "path", "text", "digest", "vectors", "spans", *index.table.kinds]
    return sorted((row for batch in index.table.batches(names) for row in batch), key=lambda row: row["id"])


def check_found(index, names):
    """Each document is stored once, and is the first answer to its own word, by words and by vectors."""
    assert Counter(Path(row["id"]).stem for row in stored(index)) == Counter(names)
    for name in names:
        for mode in ("bm25", "dense", "hybrid"):
            assert Path(index.search(name, mode=mode)[0].id).stem == name


def counts(report):
    return report.added, report.updated, report.unchanged, report.removed, len(report.failures)


def test_a_second_run_embeds_only_what_has_changed(files, index):
    assert counts(index.add(files)) == (8, 0, 0, 0, 0)
    assert counts(index.add([files, files / "apple.txt"])) == (0, 0, 8, 0, 0)
    (files / "apple.txt").write_text(text_of("island"))
    os.utime(files / "cloud.txt")
    (files / "new.txt").write_text(text_of("new"))
    encoded = index.encoder.encoded
    assert counts(index.add(files)) == (1, 1, 7, 0, 0)
    assert index.encoder.encoded == encoded + 2
    assert index.search("island", mode="bm25")[0].path == str(files / "apple.txt")
    assert not index.search("apple", mode="bm25")
    (files / "apple.txt").unlink()
    index.add(files, sync=True)
    check_found(index, [*NAMES[1:], "new"])


def test_sync_removes_what_is_gone_below_the_given_folders_only(tmp_path, files, index):
    other = tmp_path / "other"
    shutil.copytree(files, other)
    index.add([files, other])
    index.add(rows_of("row"))
    for folder in (files, other):
        (folder / "apple.txt").unlink()
        shutil.rmtree(folder / "inner")
    assert index.add(files).removed == 0
    assert index.add(tmp_path / "files" / ".." / "files", sync=True).removed == 5
    ids = {row["id"] for row in stored(index)}
    assert len(ids) == 3 + 8 + 1
    assert str(other / "apple.txt") in ids
    assert index.add([files, other], sync=True).removed == 5


def test_sync_keeps_files_of_a_folder_that_cannot_be_read(files, index, monkeypatch):
    index.add(files)
    found = module.find_files([files])
    inner = files / "inner"
    kept = [path for path in found.files if path.parent != inner]
    monkeypatch.setattr(
        module, "find_files", lambda *_: Found(dict.fromkeys(kept, 1), [(str(inner), "no permission")], 0)
    )
    report = index.add(files, sync=True)
    assert counts(report) == (0, 0, 4, 0, 1)
    assert len(stored(index)) == 8


def test_sync_of_rows_removes_rows_only(files, index):
    index.add(files)
    index.add(rows_of("one", "two"))
    assert counts(index.add(rows_of("two", "three"), sync=True)) == (1, 0, 1, 1, 0)
    with pytest.raises(ValueError, match="no sources"):
        index.add([], sync=True)
    assert {row["id"] for row in stored(index) if row["path"] is None} == {"two", "three"}
    assert len(stored(index)) == 10


def test_rows_of_a_table_follow_the_file(tmp_path, index):
    file = tmp_path / "rows.csv"
    lines = [f"{name},{text_of(name)},{number}" for number, name in enumerate(NAMES)]
    file.write_text("\n".join(["id,text,rank", *lines]))
    assert counts(index.add(file)) == (8, 0, 0, 0, 0)
    file.write_text("\n".join(["id,text,rank", *lines[:3], f"new,{text_of('new')},9"]))
    index.add(file)
    assert [row["id"].split("#")[1] for row in stored(index)] == ["apple", "bridge", "cloud", "new"]
    assert not index.search("harbor", mode="bm25")
    file.write_text("\n".join(["other,rank", *lines[:3]]))  # no column of texts: a document as it stands
    index.add(file)
    assert [row["id"] for row in stored(index)] == [str(file)]


def test_json_lines_bring_their_metadata(tmp_path, index):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows_of("a", "b", Year=2020, price=2.5, ok=True)))
    index.add(file)
    assert not index.search("a", mode="bm25")  # a word of one letter is none
    [hit, _] = index.search("word3", mode="bm25", filter="year = 2020 AND ok AND price > 2")
    assert {name: value for name, value in hit.metadata.items() if name != "title"} == {
        "year": 2020, "price": 2.5, "ok": True,
    }  # fmt: skip
    assert type(hit.metadata["year"]) is int


def test_ids_and_file_names_of_any_characters(tmp_path, index):
    ids = ["it's", 'say "hi"', "é/日本#1", "a;b--", "100%_", "new\nline", " ", "\\'", "x" * 1000]
    index.add([{"id": name, "text": f"{text_of('apple')} {number}{number}"} for number, name in enumerate(ids)])
    for number, name in enumerate(ids):
        assert index.document(name).endswith(f"{number}{number}")
    assert index.add([{"id": "it's", "text": "changed text"}]).updated == 1
    assert index.document("it's") == "changed text"
    assert index.delete(ids[1:]) == len(ids) - 1
    assert [row["id"] for row in stored(index)] == ["it's"]
    with pytest.raises(KeyError):
        index.document("nope")
    folder = tmp_path / "o'clock"
    folder.mkdir()
    (folder / 'it\'s "é".csv').write_text(f"id,text\n1,{text_of('cloud')}")
    index.add(folder)
    (folder / 'it\'s "é".csv').write_text(f"id,text\n2,{text_of('forest')}")
    assert index.add(folder).added == 1
    assert len(stored(index)) == 2


def test_a_name_that_is_not_unicode_is_a_failure_and_nothing_else(files, index):
    (Path(os.fsdecode(os.fsencode(files) + b"/\xff.txt"))).write_text("text")
    report = index.add(files)
    assert report.added == 8
    assert "Unicode" in report.failures[0][1]


def test_metadata_that_does_not_fit_is_a_failure_of_its_document(index):
    rows = [
        {"id": "fits", "text": "text", "Year": 2020, "from": "Ada", "2nd name": "x", "Path": "p", "none": None},
        {"id": "float", "text": "text", "year": 2020.5, "gone": float("nan"), "np": np.float32(1), "n": np.int64(3)},
        {"id": "kind", "text": "text", "year": "MMXX", "other": 1},
        {"id": "bool", "text": "text", "year": True},
        {"id": "nested", "text": "text", "year": {"a": 1}},
        {"id": "twice", "text": "text", "a b": 1, "A-B": 2},
        {"id": "nameless", "text": "text", "?": 1},
        {"id": "large", "text": "text", "number": 2**63 + 1},
        {"id": "surrogate", "text": "text \ud800"},
        {"id": "empty", "text": " "},
        {"id": "last", "text": "text", "other": "text, since `kind` was not added"},
    ]
    report = index.add(rows)
    assert report.added == 3
    assert [name for name, _ in report.failures] == [row["id"] for row in rows[2:-1]]
    expected = {"year", "from", "_2nd_name", "path_", "np", "n", "other"}
    assert set(index.table.kinds) == expected
    assert [hit.id for hit in index.search("text", filter="from = 'Ada' AND `_2nd_name` = 'x'")] == ["fits"]
    for _, reason in report.failures:
        assert "\n" not in reason


def test_a_file_that_no_longer_can_be_read_keeps_its_earlier_text_and_says_so(files, index):
    index.add(files)
    (files / "apple.txt").write_bytes(b"\x00\xff\xfe\x81" * 50)
    (files / "cloud.txt").write_text("")
    for _ in range(2):
        report = index.add(files, sync=True)
        assert counts(report) == (0, 0, 6, 0, 2)
        assert all("keeps what it had" in reason for _, reason in report.failures)
    check_found(index, NAMES)


def test_a_file_that_vanishes_or_is_locked_meanwhile_is_a_failure(files, index, monkeypatch):
    def digest(path):
        if path.stem == "apple":
            raise PermissionError(13, "Permission denied", str(path))
        if path.stem == "cloud":
            path.unlink()
        return original(path)

    original = module.digest
    monkeypatch.setattr(module, "digest", digest)
    report = index.add(files)
    assert counts(report) == (6, 0, 0, 0, 2)


def test_the_index_leaves_itself_out(files):
    index = Index.open(files / "index", model="words")
    assert index.add(files).added == 8
    report = index.add(files)
    assert counts(report) == (0, 0, 8, 0, 0)


def test_documents_are_whole_in_their_last_window(index):
    text = " ".join(f"filler{number}" for number in range(5 * WINDOW - 3)) + " zebra quagga okapi"
    index.add([{"id": "long", "text": text}, *rows_of(*NAMES)])
    for mode in ("dense", "hybrid", "bm25"):
        hit = index.search("zebra quagga okapi", mode=mode)[0]
        assert hit.id == "long"
        assert hit.passage == text[hit.start : hit.end]
        assert len(hit.matches) == 5
        assert hit.matches[-1][1] == hit.length == len(text)
    assert max(hit.matches, key=lambda match: match[2]) == hit.matches[-1]


def test_what_is_no_document_is_refused_before_anything_is_written(index):
    for rows, problem in (
        ([*rows_of("a", "b"), *rows_of("a")], "id 'a' stands twice"),
        ([*rows_of("1"), {"id": 1, "text": "t"}], "stands twice"),
        ([{"id": "a"}], "document number 0"),
        ([*rows_of("a"), {"id": "b", "text": None}], "document number 1"),
        ([{"id": None, "text": "t"}], "document number 0"),
        ([*rows_of("a"), "b.txt"], "document number 1"),
    ):
        with pytest.raises(ValueError, match=problem):
            index.add(rows)
        assert not index.table.exists


def test_an_index_without_documents(tmp_path, index, files):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.txt").write_text("")
    assert counts(index.add(empty)) == (0, 0, 0, 0, 1)
    assert index.delete(["a"]) == 0
    index.compact()
    for call in (index.info, index.duplicates, lambda: index.search("q"), lambda: index.document("a"),
                 lambda: index.rebuild("others")):  # fmt: skip
        with pytest.raises(ValueError, match="is empty"):
            call()
    with pytest.raises(ValueError, match="does not exist or is empty"):
        Index.open(index.folder)
    index.add(files)
    assert index.delete(filter="true") == 8
    assert index.search("apple") == []
    assert index.duplicates() == []
    assert index.info()["documents"] == 0
    assert index.rebuild("others") == 0
    assert index.add(files).added == 8
    check_found(index, NAMES)


def test_an_add_that_fails_midway_is_finished_by_the_next(files, index, monkeypatch):
    monkeypatch.setattr(Index, "batch_documents", 2)
    encode, calls = WordEncoder.encode_documents, []

    def fail_third(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *arguments)

    monkeypatch.setattr(WordEncoder, "encode_documents", fail_third)
    with pytest.raises(KeyboardInterrupt):
        index.add(files)
    assert len(stored(index)) == 4
    reopened = Index.open(index.folder)
    assert len(reopened.search("all about")) == 4
    assert counts(reopened.add(files)) == (4, 0, 4, 0, 0)
    assert reopened.info()["not yet in the index of words"] == 0
    check_found(index, NAMES)


def test_a_search_by_words_scores_as_if_all_had_been_added_at_once(index, tmp_path, monkeypatch):
    monkeypatch.setattr(Index, "batch_documents", 3)
    rng = np.random.default_rng(0)
    rows = [{"id": str(n), "text": " ".join(f"t{int(w)}" for w in rng.zipf(1.5, 60))} for n in range(100)]
    with monkeypatch.context() as patch:
        patch.setattr(table_module.Table, "finish", lambda self: None)  # as if it were killed before
        index.add(rows)
        index.add([*rows[:20], {"id": "new", "text": "t1 t2"}])
    index.add([])  # mends it
    monkeypatch.setattr(Index, "batch_documents", 1000)
    whole = Index.open(tmp_path / "whole", model="words")
    whole.add([*rows, {"id": "new", "text": "t1 t2"}])
    for query in ("t1 t7", "t2 t30 t11", "t5"):
        scores, expected = index.rank(query, "bm25"), whole.rank(query, "bm25")
        assert scores.keys() == expected.keys()
        for id in scores:
            assert scores[id] == pytest.approx(expected[id], abs=1e-5)


def test_rebuild_embeds_by_another_model_and_keeps_everything_else(tmp_path, files, index):
    index.add(files)
    index.add(rows_of("row", year=2020))
    before, reader, old = stored(index), Index.open(index.folder), Index.open(index.folder)
    reader.search("apple")
    with pytest.raises(ValueError, match="m2bert index --rebuild --model others --index"):
        Index.open(index.folder, model="others")
    old.encoder  # noqa: B018  (loads it)
    assert index.rebuild("others") == 9
    after = stored(index)
    for name in ("id", "path", "text", "digest", "year"):
        assert [row[name] for row in before] == [row[name] for row in after]
    assert before[0]["vectors"] != after[0]["vectors"]
    assert Index.open(index.folder).info()["model"] == "others"
    for its in (index, reader):  # a reader follows
        for mode in ("dense", "hybrid"):
            assert [hit.score for hit in its.search("harbor", mode=mode)] == [
                hit.score for hit in Index.open(index.folder).search("harbor", mode=mode)
            ]
    with pytest.raises(ValueError, match="model=words gives other vectors"):
        old.add(rows_of("more"))
    assert counts(index.add(files)) == (0, 0, 8, 0, 0)
    assert index.add(rows_of("row", year=2020)).unchanged == 1


def test_a_reader_keeps_to_the_old_table_until_the_words_of_a_new_one_are_indexed(files, index, monkeypatch):
    index.add(files)
    reader = Index.open(index.folder)
    with monkeypatch.context() as patch:
        patch.setattr(table_module.Table, "_make_indexes", lambda self: self._indexes() or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.rebuild("others")
    for its in (reader, Index.open(index.folder)):
        assert its.info()["model"] == "words"
        check_found(its, NAMES)
    writer = Index.open(index.folder)
    writer.add([])
    assert writer.info()["model"] == "others"
    check_found(reader, NAMES)


def test_delete_and_compact(files, index):
    index.add(files)
    index.add(rows_of("one", "two", year=2020) + rows_of("three", year=1999))
    assert index.delete(filter="year > 2000") == 2
    assert index.delete("three") == 1
    assert index.delete(["three", "nope"]) == 0
    with pytest.raises(ValueError, match="either ids or a filter"):
        index.delete()
    index.compact()
    check_found(index, NAMES)
    size = index.info()["bytes"]
    assert size == sum(path.stat().st_size for path in Path(index.folder).rglob("*") if path.is_file())
    for _ in range(5):
        index.add(rows_of("one"))
        index.delete("one")
    assert index.info()["bytes"] < size + 20_000  # nothing old stays


def test_what_is_deleted_comes_back_while_its_file_is_there(tmp_path, files, index):
    (files / "rows.csv").write_text("id,text,year\na,about an apple,1999\nb,about a boat,2020\nc,about a cart,\n")
    before = index.add(files).added
    for filter, embedded in (("year < 2000", 3), (f"path = '{files / 'rows.csv'}'", 3), ("id LIKE '%.csv#c'", 3)):
        gone = index.delete(filter=filter)
        assert index.info()["documents"] == before - gone
        report = index.add(files)
        assert (report.added, report.added + report.updated) == (gone, embedded)
        assert index.info()["documents"] == before
        assert index.add(files).unchanged == before


def test_columns_of_other_programs_are_left_alone(files, index):
    import lance
    import pyarrow as pa

    index.add(files)
    lance.dataset(index.table.uri).add_columns(pa.field("theirs", pa.list_(pa.uint32())))
    index.add(rows_of("one", year=2020))
    assert "theirs" not in index.search("apple")[0].metadata
    assert "theirs" in index.table.schema.names
    assert index.search("apple", filter="year = 2020")[0].id == "one"
    check_found(index, [*NAMES, "one"])


def test_copies_and_moved_indexes_work(tmp_path, files, index):
    index.add(files)
    shutil.copytree(index.folder, tmp_path / "backup")
    index.delete(filter="true")
    shutil.move(index.folder, tmp_path / "moved")
    assert Index.open(tmp_path / "moved").search("apple") == []
    copy = Index.open(tmp_path / "backup")
    check_found(copy, NAMES)
    assert copy.add(files).unchanged == 8


def test_what_is_no_index_of_this_version_is_refused(tmp_path, files, index, monkeypatch):
    (tmp_path / "file").write_text("text")
    index.add(files)
    settings = table_module.Settings
    monkeypatch.setattr(module, "Settings", lambda *values: settings(*values, format=table_module.FORMAT + 1))
    newer = Index.open(tmp_path / "newer", model="words")
    newer.add(files)
    for place, model, problem in (
        ("file", "words", "is a file; name a folder"),
        ("files", "words", "folder of something else; name an empty or new one"),
        ("files", None, "folder of something else; name the folder of an index"),
        ("newer", None, f"has format {table_module.FORMAT + 1}, .* pip install --upgrade m2bert"),
        ("nope", None, r"does not exist or is empty; make it with m2bert index FILES --index \S+nope --model MODEL"),
    ):
        with pytest.raises(ValueError, match=problem):
            Index.open(tmp_path / place, model=model)
    assert not (tmp_path / "nope").exists()
    with pytest.raises(ValueError, match="has vectors=16; leave vectors=8 out"):
        Index.open(index.folder, vectors=8)


def test_an_index_of_an_older_version_answers_once_it_is_rebuilt(tmp_path, files, monkeypatch):
    settings = table_module.Settings
    with monkeypatch.context() as patch:
        patch.setattr(module, "Settings", lambda *values: settings(*values, format=table_module.FORMAT - 1))
        Index.open(tmp_path / "old", model="words").add(files)
    old = Index.open(tmp_path / "old")
    for use in (lambda: old.add(rows_of("one")), lambda: old.search("apple")):
        with pytest.raises(ValueError, match=r"gives other vectors \(format 1, now 2\).*m2bert index --rebuild"):
            use()
    assert old.rebuild("words") == 8
    check_found(Index.open(tmp_path / "old"), NAMES)


def test_queries_and_filters_that_cannot_be_answered(files, index):
    index.add(files)
    index.add(rows_of("one", year=2020))
    for arguments, problem in (
        ({"query": " "}, "query is empty"),
        ({"query": "q", "limit": 0}, "limit=0"),
        ({"query": "q", "limit": 100_000}, "limit=100000"),
        ({"query": "q", "mode": "words"}, "mode='words' is unknown"),
        ({"query": "q", "weight": 2}, "weight=2"),
        ({"query": "q", "weight": 0.5, "mode": "bm25"}, "weight=0.5"),
        ({"query": "q", "filter": "year >"}, "filter='year >' cannot be used .* write it as SQL"),
        ({"query": "q", "filter": "nope = 1"}, "No field named nope.*year"),
        ({"query": "q", "filter": "year = 'abc'"}, "cannot be used"),
        ({"query": "q", "filter": "year = 2020 id = 'one'"}, "cannot be used"),  # an AND is missing
        ({"query": "q", "filter": "year = 2020; DROP TABLE t", "mode": "dense"}, "cannot be used"),
    ):
        with pytest.raises(ValueError, match=problem) as raised:
            index.search(**arguments)
        assert "\n" not in str(raised.value)
    assert index.search("?!", mode="bm25") == []
    assert len(index.search("?!")) == 9


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_a_filter_that_cannot_be_used_is_refused_before_a_model_loads(index, mode):
    index.add(rows_of("one", year=2020))
    reader = Index.open(index.folder)
    with pytest.raises(ValueError, match="No field named nope"):
        reader.search("one", mode=mode, filter="nope = 1")
    assert reader._encoder is None
    assert len(reader.search("one", mode=mode, filter="year = 2020")) == 1


def test_more_documents_than_candidates_are_ranked_if_asked_for(index):
    index.add([{"id": str(number), "text": f"apple {number}"} for number in range(300)])
    for mode in ("hybrid", "bm25", "dense"):
        hits = index.search("apple", limit=250, mode=mode)
        assert len({hit.id for hit in hits}) == 250
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_weight_one_ranks_as_vectors_and_zero_as_words(files, index):
    index.add(files)
    for query in ("apple garden", "word1 harbor"):
        for weight, mode in ((1, "dense"), (0, "bm25")):
            alone = index.rank(query, mode)
            best = max(alone.values())
            assert next(iter(index.rank(query, weight=weight))) in [id for id in alone if alone[id] == best]


def test_a_word_that_one_document_has_counts_in_a_hybrid(index):
    others = [{"id": str(number), "text": f"apple number{number}"} for number in range(100)]
    index.add([*others, {"id": "code", "text": "xk4711 " + "pear " * 60}])
    assert index.rank("xk4711", "bm25").keys() == {"code"}
    for weight in (None, 0.4):
        assert next(iter(index.rank("xk4711", weight=weight))) == "code"


def test_a_second_writer_is_refused_by_name(files, index, monkeypatch):
    index.add(files)
    other = Index.open(index.folder)
    with index._writing():
        for write in (lambda: other.add(files), lambda: other.delete("a"), other.compact, lambda: other.rebuild("o")):
            with pytest.raises(ValueError, match=f"another process writes to {index.folder}"):
                write()
        check_found(other, NAMES)


def test_threads_search_beside_a_writer(files, index):
    index.add(files)
    reader, errors, done = Index.open(index.folder), [], threading.Event()

    def search():
        while not done.is_set():
            try:
                assert reader.search("apple", mode="bm25")[0].id.endswith("apple.txt")
                assert len(reader.search("harbor", limit=3, filter="path IS NOT NULL")) == 3
            except Exception as error:  # noqa: BLE001
                errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    [thread.start() for thread in threads]
    for number in range(12):
        index.add(rows_of("one", "two", year=number))
        index.delete(["one"])
        index.compact()
    done.set()
    [thread.join() for thread in threads]
    assert not errors


def test_threads_that_share_an_index_find_what_one_finds(files, index):
    index.add(files)
    index.add(rows_of("one", "two", year=2020))
    asked = [
        {"query": query, "mode": mode, "filter": filter, "limit": 1}
        for query in NAMES[:4]
        for mode in ("hybrid", "dense", "bm25")
        for filter in (None, "year = 2020")
    ]
    alone = [index.search(**its) for its in asked]
    shared = Index.open(index.folder)  # whose encoder the first of them loads
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda turn: [shared.search(**its) for its in asked[turn:] + asked[:turn]], range(8)):
            assert sorted(map(str, found)) == sorted(map(str, alone))


def test_a_full_disk_leaves_the_index_as_it_was(files, index, monkeypatch):
    index.add(files)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(index.table._table), "insert", full)
        with pytest.raises(ValueError, match="cannot be written .*No space left on device.*intact"):
            index.add(rows_of("one"))
    check_found(Index.open(index.folder), NAMES)


def test_the_plan_is_what_then_happens(tmp_path, files, index):
    (files / "long.txt").write_text(f"{filler} " * 40)
    (files / "bad.txt").write_text("")
    plan, failures = make_plan(index, [files])
    assert not index.table.exists
    report = index.add(files)
    assert [plan["files"], plan["documents to embed"], plan["tokens"]] == [9, 9, report.tokens]
    assert plan["vectors"] == index.info()["vectors"] > 9
    assert failures == report.failures
    again, _ = make_plan(index, [files])
    assert (again["documents unchanged"], again["tokens"], again["gigabytes more on the disk"]) == (9, 0, 0)


def test_minhash_estimates_the_share_of_sequences():
    rng = np.random.default_rng(1)
    for part in (0.1, 0.3, 0.6, 0.95):
        errors = []
        for _ in range(20):
            common = [f"c{int(n)}" for n in rng.integers(0, 10**9, int(2000 * part))]
            texts = [
                " ".join(common + [f"x{int(n)}" for n in rng.integers(0, 10**9, 2000 - len(common))]) for _ in "ab"
            ]
            exact = share(*map(sequences, texts))
            errors.append((minhash(sequences(texts[0])) == minhash(sequences(texts[1]))).mean() - exact)
        deviation = np.sqrt(exact * (1 - exact) / HASHES)
        assert abs(np.mean(errors)) < 4 * deviation / np.sqrt(20)
        assert np.std(errors) < 2 * deviation + 0.005


def test_pairs_among_many_equal_documents_and_none():
    hashes = np.random.default_rng(0).integers(0, 2**32, (60, HASHES), dtype=np.uint32)
    hashes[10:50] = hashes[10]
    pairs = similar_pairs(hashes, 0.5)
    assert {place for pair in pairs for place in pair} == set(range(10, 50))
    assert similar_pairs(hashes[:0], 0.5) == similar_pairs(hashes[:1], 0.5) == []


@pytest.mark.slow
def test_near_duplicates_of_rfc_summary(shared, index):
    """The six pairs are those that its README counts; of all pairs, the seventh shares 0.185 of its sequences."""
    import pyarrow.parquet as pq

    documents = pq.read_table(shared / "data" / "rfc_summary" / "documents").to_pylist()
    index.add([{"id": row["pid"].rsplit("_", 1)[1], "text": row["passage"]} for row in documents])
    pairs = {frozenset(pair[:2]) for pair in index.duplicates()}
    expected = ("389 464", "336 354", "303 310", "359 373", "358 359", "270 279")
    assert pairs == {frozenset(pair.split()) for pair in expected}


def test_lancedb_reads_the_table(files, index):
    lancedb = pytest.importorskip("lancedb")
    index.add(files)
    table = lancedb.connect(index.folder).open_table("documents")
    assert table.count_rows() == 8
    [first] = table.search("harbor", query_type="fts", fts_columns="words").limit(1).select(["id"]).to_list()
    assert first["id"] in index.rank("harbor", "bm25")
