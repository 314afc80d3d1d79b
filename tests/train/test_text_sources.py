"""Sources: what files hold, which entries are accepted, how shares are made."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2bert.train.text.sources import TextFiles, find_files, find_texts, parse_sources, split_files

TEXTS = ["One text.\nTwo lines.", "Zwei: äöü.", "2011-01-01", "3"]  # datasets' JSON reader makes other texts of dates


def write_parquet(path, texts, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts}), path)


def write(folder, kind, texts=TEXTS):
    """Write training text of one kind, split in two files where that is possible."""
    folder.mkdir(exist_ok=True)
    if kind == "locov1":
        write_parquet(folder / "documents" / "train.parquet", texts, "passage")
    elif kind == "shards":
        write_parquet(folder / "train-00000-of-00002.parquet", texts[:1])
        write_parquet(folder / "train-00001-of-00002.parquet", texts[1:])
    elif kind == "parquet":
        write_parquet(folder / "train.parquet", texts)
    elif kind == "parts":
        write_parquet(folder / "documents" / "train-00000-of-00002.parquet", texts[:1], "passage")
        write_parquet(folder / "documents" / "train-00001-of-00002.parquet", texts[1:], "passage")
    elif kind in ("jsonl", "json", "jsonl.gz"):
        lines = "\ufeff" + "\n".join(json.dumps({"other": 1, "text": text}) for text in texts) + "\n\n"
        packed = gzip.compress(lines.encode()) if kind.endswith("gz") else lines.encode()
        (folder / f"train.{kind}").write_bytes(packed)
    else:
        (folder / "train.txt").write_text("\ufeff" + "\n\n  \n".join(texts) + "\n\n")
    return folder


def parse(*entries):
    return parse_sources(list(entries), lambda path: Path("pydocs-folder"))


@pytest.mark.parametrize("kind", ["locov1", "parts", "shards", "parquet", "jsonl", "json", "jsonl.gz", "txt"])
def test_every_kind_of_file_gives_its_documents_again_and_again(tmp_path, kind):
    texts = TextFiles(find_files(write(tmp_path, kind), "train"))
    assert list(texts) == list(texts) == TEXTS


def test_a_folder_of_texts_without_splits_holds_a_document_a_file(tmp_path):
    """It may be the folder of an evaluation: queries.csv is no text."""
    for name, text in (("a.txt", "one\n\ntwo"), ("b.md", "# three"), ("c.html", "<p>four<script>x</script>")):
        (tmp_path / "documents").mkdir(exist_ok=True)
        (tmp_path / "documents" / name).write_text(text)
    (tmp_path / "queries.csv").write_text("query,answer\nx,a.txt\n")
    (source,) = parse({"path": str(tmp_path)})
    assert source.validation_split is None
    texts = source.splits()["train"]
    assert list(texts) == ["one\n\ntwo", "# three", "four"]
    assert texts.identity() != TextFiles(texts.files).identity()
    for key in ("split", "validation_split"):  # a split is looked for
        with pytest.raises(ValueError, match=f"is local and has no {key}"):
            parse({"path": str(tmp_path), key: "dev"})
    (tmp_path / "web.txt").write_text("a file of a split\n\nif one asks for it")
    with pytest.raises(ValueError, match="holds neither documents/validation"):
        parse({"path": str(tmp_path), "split": "web"})[0].splits()
    assert len(list(parse({"path": str(tmp_path), "split": "web", "validation_split": None})[0].splits()["web"])) == 2
    (tmp_path / "train.txt").write_text("one\n\ntwo")
    assert list(find_texts(tmp_path, "train")) == ["one", "two"]
    with pytest.raises(ValueError, match="holds neither"):
        find_texts(tmp_path, "validation")
    write_parquet(tmp_path / "documents" / "test.parquet", TEXTS, "passage")
    (tmp_path / "train.txt").unlink()
    with pytest.raises(ValueError, match="holds neither"):
        find_texts(tmp_path, "train")


def test_rows_are_joined_to_documents(tmp_path):
    write_parquet(tmp_path / "train.parquet", [f"row {i}" for i in range(5)])
    texts = TextFiles(find_files(tmp_path, "train"), rows_per_document=2)
    assert list(texts) == ["row 0\nrow 1", "row 2\nrow 3", "row 4"]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("train.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "line 2 holds no text as 'text': {'body': 'b'}"),
        ("train.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 holds no text"),
        ("train.jsonl", b'{"text": "a"}\n{"text": "a \\ud83d"}\n', "line 2 .*surrogates not allowed"),
        ("train.jsonl", b"[" * 100_000, "line 1 .*recursion"),
        ("train.txt", b"\xff\xfe bytes", "train.txt cannot be read .*UTF-8"),
        ("train.parquet", b"PAR1 no more", "train.parquet cannot be read"),
        ("train.csv", b"text", "it holds train.csv"),
    ],
)
def test_unreadable_text_is_named(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=named):
        list(TextFiles(find_files(tmp_path, "train")))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table([["a"], ["b"]], ["text", "text"]), "needs the columns text, each once; it has text, text"),
        (pa.table({"text": [["a"]]}), "row 1 holds no text as 'text'"),
        (pa.table({"text": pa.array([b"\xff"]).view(pa.string())}), "cannot be read .*utf-8"),
        (pa.table({"body": ["a"]}), "needs the columns text, each once; it has body"),
    ],
)
def test_columns_that_are_no_text_are_named_before_all_is_read(tmp_path, table, message):
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=f"train.parquet.*{message}"):
        TextFiles(find_files(tmp_path, "train")).check()


def test_text_of_every_arrow_type_is_read(tmp_path):
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"text": pa.array(["a", None], pa.string()).cast(kind)}), tmp_path / "train.parquet")
        assert list(TextFiles(find_files(tmp_path, "train"))) == ["a", ""]


def test_hidden_files_are_no_text_and_other_types_are_known(tmp_path):
    for name in ("train-1.txt", "._train-2.txt", ".train-3.txt", "train.csv", "train-3.md", "notes.txt"):
        (tmp_path / name).write_text("words")
    assert [path.name for path in find_files(tmp_path, "train")] == ["train-1.txt"]
    assert [path.name for path in split_files(tmp_path, "train")] == ["train-1.txt", "train-3.md", "train.csv"]


def test_without_shares_sources_are_equal_and_a_third_variable(tmp_path):
    a, b = parse({"path": str(write(tmp_path / "a", "txt"))}, {"path": None})
    assert (a.name, b.name, b.path) == ("a", "pydocs", Path("pydocs-folder"))
    for source in (a, b):
        assert source.shares == pytest.approx({"variable": 0.15, "maximum": 0.35})


def test_a_missing_share_is_zero_and_a_source_without_any_is_left_out(tmp_path):
    paths = [str(write(tmp_path / name, "txt")) for name in "abc"]
    sources = parse({"path": paths[0], "maximum": 0.6}, {"path": paths[1], "variable": 0.4}, {"path": paths[2]})
    assert [source.name for source in sources] == ["a", "b"]
    assert sources[0].shares == {"variable": 0.0, "maximum": 0.6}
    tenths = [{"path": path, "variable": 0.1, "maximum": 0.7 / 3} for path in paths]
    assert len(parse(*tenths)) == 3  # binary fractions do not sum to exactly 1


def test_a_name_that_is_no_local_path_is_on_the_hub():
    (source,) = parse({"path": "allenai/c4", "config": "en", "validation_split": None})
    assert source.on_hub
    assert (source.name, source.path, source.config, source.validation_split) == ("c4", "allenai/c4", "en", None)


def test_the_validation_of_a_single_file_is_carved(tmp_path):
    path = str(write(tmp_path, "txt") / "train.txt")
    assert parse({"path": path})[0].validation_split is None
    with pytest.raises(ValueError, match="is local and has no validation_split"):
        parse({"path": path, "validation_split": "dev"})


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ([{"name": "a"}], r"data.sources\[0\]: path is missing"),
        ([{"path": None, "variabel": 0.3}], "'variabel'; did you mean 'variable'"),
        ([{"path": None, "variable": 0.3, "maximum": 0.6}], "sum to 1, not 0.9"),
        ([{"path": None, "variable": -0.5, "maximum": 1.5}], "variable is -0.5"),
        ([{"path": None}, {"path": None}], "names must differ.*'pydocs'"),
        ([{"path": None, "name": "a/b"}], "'a/b'"),
        ([{"path": "a/b", "validation_split": "train"}], "both 'train'"),
        ([{"path": "/nowhere/at/all"}], "'/nowhere/at/all'"),
        ([{"path": None, "config": "en"}], "config"),
        ([{"path": "a/b", "split": "train+test[:50%]"}], "the test split"),
        ([{"path": None, "split": "test_full"}], "split=test_full is the test split"),
        ([{"path": "a/b", "validation_split": "Test2"}], "validation_split=Test2 is the test split"),
    ],
)
def test_bad_entries_are_named(entries, named):
    with pytest.raises(ValueError, match=named):
        parse(*entries)


def test_a_file_of_the_test_split_is_refused(tmp_path):
    for name in ("test-00000-of-00001.parquet", "locov1_test.parquet", "TEST_full.parquet"):
        write_parquet(tmp_path / name, TEXTS)
        with pytest.raises(ValueError, match="is the test split"):
            parse({"path": str(tmp_path / name)})[0].splits()
    for name in ("latest.parquet", "tested_words.parquet", "contest.parquet"):
        write_parquet(tmp_path / name, TEXTS)
        assert list(parse({"path": str(tmp_path / name)})[0].splits()["train"]) == TEXTS
