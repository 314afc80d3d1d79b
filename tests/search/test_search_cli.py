"""The commands `m2bert index`, `search` and `embed`: what they print, and what they refuse, in one line and at once."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from m2bert.cli import app
from m2bert.search import Index
from m2bert.search import table as table_module

from .word_encoder import WordEncoder

SMALL = Path(__file__).parents[2] / "models" / "m2bert-small"
TEXTS = {
    "lease.txt": "The landlord may end the lease with ninety days of notice if the rent is late.",
    "minutes.md": "# Minutes\n\nThe committee approved the budget for the new bridge with nine votes.",
    "bees.txt": "Bees dance in the hive. The angle of the dance tells the others where the flowers are.",
}


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr("m2bert.search.encoder.Encoder", WordEncoder)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "files").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "files" / name).write_text(text)
    return tmp_path / "files"


@pytest.fixture
def made(tmp_path, files):
    index = Index.open(tmp_path / "index", model="words")
    index.add(files)
    index.add([{"id": "row", "text": "A row about a boat.", "year": 2020}])
    return tmp_path / "index"


def called(*arguments, code=0):
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def refused(*arguments):
    """Return the one line that a command answers bad input with, after what may be left of a bar."""
    *others, line = called(*arguments, code=2).stderr.replace("\r", "\n").strip().splitlines()
    assert line.startswith("m2bert: ")
    assert all("|" in other or not other.strip() for other in others)
    return line


def test_index_search_and_delete(tmp_path, files):
    place = tmp_path / "index"
    (files / "empty.txt").touch()
    (files / ".hidden").write_text("text")
    output = called("index", files, "--index", place, "--model", "words", code=1).output
    assert "3 added, 0 updated, 0 unchanged, 0 removed" in output
    assert "1 hidden or repeated file left out" in output
    assert re.search(r"1 cannot be added:\n  \S+empty.txt: empty", output)
    assert "lease.txt, 0% into it" in called("search", "landlord lease", "--index", place, "--mode", "bm25").output
    (files / "empty.txt").unlink()
    (files / "bees.txt").unlink()
    assert "2 unchanged, 1 removed" in called("index", files, "--index", place, "--sync").output
    info = called("index", "--info", "--index", place).output
    assert "documents: 2\n" in info
    assert "model: words\n" in info
    assert "1 document deleted" in called("index", "--delete", "path LIKE '%lease.txt'", "--index", place).output
    assert "nothing found" in called("search", "lease", "--index", place, "--mode", "bm25").output
    assert "1 document embedded anew" in called("index", "--rebuild", "--model", "others", "--index", place).output
    assert "0 pairs" in called("index", "--duplicates", "--index", place).output


def test_a_model_that_is_gone_is_named_with_a_fix(tmp_path, files):
    (tmp_path / "model").mkdir()
    called("index", files, "--index", tmp_path / "i", "--model", tmp_path / "model")
    (tmp_path / "model").rmdir()
    line = refused("search", "lease", "--index", tmp_path / "i")
    assert (
        f"was made by {tmp_path / 'model'}, which is gone; put it back, or embed anew: m2bert index --rebuild" in line
    )
    assert (
        "3 documents embedded anew"
        in called("index", "--rebuild", "--model", "words", "--index", tmp_path / "i").output
    )
    assert "lease.txt" in called("search", "lease", "--index", tmp_path / "i").output


def test_many_failures_are_counted_by_their_reason(tmp_path, files):
    names = [
        f"{number}.{suffix}" for suffix, count in (("xlsx", 15), ("png", 9), ("txt", 2)) for number in range(count)
    ]
    for name in names:
        (files / name).write_text(" ")
    (files / "a.jsonl").write_text('{"text": "x"}\n{')
    lines = called("index", files, "--index", tmp_path / "i", "--model", "words", code=1).stdout.splitlines()
    [start] = [number for number, line in enumerate(lines) if line == "27 cannot be added:"]
    assert len(lines) == start + 1 + 5 + 1 + 5 + 1 + 2 + 1
    assert {"  and 10 more: unsupported type .xlsx", "  and 4 more: unsupported type .png"} < set(lines)
    assert sum("unsupported type .png; convert it to one of .txt" in line for line in lines) == 5
    assert any(line.startswith(f"  {files / 'a.jsonl'}: line 2 is no valid JSON") for line in lines)
    assert f"  {files / '1.txt'}: empty: there is no text in it; remove it" in lines
    for name in names[8:]:
        (files / name).unlink()
    lines = called("index", files, "--plan", "--index", tmp_path / "i").stdout.splitlines()
    assert "9 cannot be added:" in lines
    assert "  and 3 more: unsupported type .xlsx" in lines


def test_json_is_one_document_a_line(made):
    lines = called("search", "boat", "--index", made, "--json", "--limit", 2, "--filter", "year = 2020").stdout
    [hit] = map(json.loads, lines.splitlines())
    assert hit["id"] == "row"
    assert hit["metadata"] == {"year": 2020}
    assert hit["passage"] == "A row about a boat."[hit["start"] : hit["end"]]
    assert called("search", "boat", "--index", made, "--json", "--filter", "year = 1").stdout == ""


def test_a_plan_changes_nothing(tmp_path, files):
    place = tmp_path / "index"
    output = called("index", files, "--plan", "--index", place, "--model", "words").output
    assert "documents unchanged: 0\ndocuments to embed: 3\n" in output
    assert not place.exists()


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    Index.open(tmp_path / "index", model="words").add([{"id": "\x1b[2Ja", "text": "boat \x1b]0;title\x07"}])
    assert "\x1b" not in called("search", "boat", "--index", tmp_path / "index").output


def test_bad_input_is_one_line_that_names_the_fix(tmp_path, files, made, monkeypatch):
    (tmp_path / "file").write_text("text")
    for arguments, fix in (
        (["index", "nope", "--index", made], "nope does not exist; give files and folders that do"),
        (["index", "--index", made], "say one thing to do"),
        (["index", files, "--info", "--index", made], "say one thing to do"),
        (["index", "--index", made, "--info", "--sync"], "--sync, --plan and --ray need PATHS"),
        (["index", files, "--index", made, "--plan", "--ray", "local"], "leave --sync and --ray out"),
        (["index", files, "--index", made, "--sync", "--plan"], "leave --sync and --ray out"),
        (["index", "--index", made, "--rebuild"], "--rebuild needs --model"),
        (["index", files, "--index", tmp_path / "new"], "make it with m2bert index FILES --index"),
        (["index", files, "--index", files, "--model", "words"], "is a folder of something else; name an empty or new"),
        (["index", files, "--index", tmp_path / "file", "--model", "words"], "is a file; name a folder"),
        (["index", files, "--index", made, "--model", "others"], "m2bert index --rebuild --model others --index"),
        (["index", files, "--index", made, "--vectors", 4], "leave vectors=4 out"),
        (["index", "--index", made, "--delete", "nope = 1"], "No field named nope. Valid fields are id, path"),
        (["index", "--index", made, "--delete", "year = 2020 path = 'a'"], "write it as SQL"),
        (["index", "--info", "--index", tmp_path / "new", "--model", "words"], "is empty; fill it: m2bert index"),
        (["search", "boat", "--index", tmp_path / "new"], "does not exist or is empty; make it with m2bert index"),
        (["search", "boat", "--index", tmp_path / "file"], "is a file"),
        (["search", " ", "--index", made], "query is empty; write what you look for"),
        (["search", "boat", "--index", made, "--filter", "year >"], "filter='year >' cannot be used"),
        (["search", "boat", "--index", made, "--filter", "yaer > 1"], "yaer"),
        (["search", "boat", "--index", made, "--mode", "words"], "'words' is not one of"),
        (["search", "boat", "--index", made, "--weight", 0.5, "--mode", "dense"], "weight=0.5"),
        (["search", "boat", "--index", made, "--limit", 5000], "limit=5000 must be from 1 to 1000"),
    ):
        line = refused(*arguments)
        assert fix in line, line
    monkeypatch.setattr(table_module, "FORMAT", 0)
    assert "has format 2, and this version reads 0; pip install --upgrade m2bert" in refused(
        "search", "boat", "--index", made
    )
    monkeypatch.undo()
    assert not (tmp_path / "new").exists()
    assert Index.open(made).info()["documents"] == 4


def test_bad_arguments_are_refused_before_anything_slow_is_imported(tmp_path, files):
    code = (
        "import sys; from m2bert.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "finally: print(*({'torch', 'lance', 'pyarrow', 'fastapi', 'transformers'} & set(sys.modules)))"
    )
    for arguments in (
        ["index", "nope", "--index", "x"],
        ["index", files, "--index", tmp_path / "new"],
        ["index", files, "--index", files, "--model", "m"],
        ["search", "q", "--index", "nope"],
        ["search", "q", "--index", files],
        ["search", "q", "--index", "x", "--mode", "words"],
        ["embed", "nope.jsonl", "--output", "out.parquet", "--model", "m"],
        ["embed", files / "lease.txt", "--output", "out.parquet", "--model", "m"],
    ):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 2, done.stderr
        assert done.stdout.strip() == "", arguments
        assert len(done.stderr.strip().splitlines()) == 1
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("limit", ["full", "read-only"])
def test_a_full_disk_and_a_read_only_folder_leave_the_index_as_it_was(tmp_path, made, limit):
    """A file may not grow beyond 64 KB, as on a full disk, or the folder belongs to another user."""
    if limit == "read-only" and os.getuid() != 0:
        pytest.skip("needs root, to become a user who may not write")
    rows = [{"id": f"big{n}", "text": " ".join(f"w{n}x{i}" for i in range(9_000))} for n in range(9)]
    limits = {
        "full": "resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))",
        "read-only": "os.setgid(65534); os.setuid(65534)",
    }
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import json, os, resource, m2bert.search.encoder\n"
        "from word_encoder import WordEncoder; m2bert.search.encoder.Encoder = WordEncoder\n"
        "from m2bert.search import Index; from m2bert.terminal import run_command\n"
        "rows = json.loads(sys.stdin.read())\n"
        "Index.open(sys.argv[3], 'words').add(rows)\n"  # imports everything
        "index = Index.open(sys.argv[2])\n"
        f"{limits[limit]}\n"
        "run_command('m2bert', lambda: index.add(rows))"
    )
    for folder in (made, *made.parents[:3]):
        folder.chmod(0o755)
    command = [sys.executable, "-c", code, Path(__file__).parent, made, tmp_path / "other"]
    done = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("m2bert: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert ("File too large" if limit == "full" else "cannot be written (Permission denied)") in lines[0]
    assert "intact" in lines[0] or "name another" in lines[0]
    index = Index.open(made)
    assert index.info()["documents"] == 4
    assert index.search("boat")[0].id == "row"
    assert index.add(rows).added == 9


def test_embed_writes_a_row_for_every_vector(tmp_path):
    rows = [{"id": n, "text": " ".join(f"w{n}x{i}" for i in range(100 * n + 1))} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    wrong = refused("embed", tmp_path / "rows.jsonl", "--output", tmp_path / "out.csv", "--model", "words")
    assert "out.csv is no Parquet file; name one that ends in .parquet" in wrong
    for name in ("rows.jsonl", "rows.parquet"):
        output = tmp_path / f"{name}.out.parquet"
        message = called("embed", tmp_path / name, "--output", output, "--model", "words").output
        table = pq.read_table(output)
        assert table["id"].to_pylist() == ["0", "1", "1", "2", "2", "2", "2"]
        assert table.schema.field("vector").type == pa.list_(pa.float32(), 32)
        assert "3 documents, 7 vectors" in message
        assert "exists; choose another file or pass --overwrite" in refused(
            "embed", tmp_path / name, "--output", output, "--model", "words"
        )


@pytest.mark.parametrize(
    ("name", "content", "fix"),
    [
        ("a.jsonl", '{"id": 1, "text": "t"}\n{"id": 2', "line 2"),
        ("a.jsonl", '{"id": 1, "text": "t"}\n{"id": 2, "text": null}', "line 2 is no"),
        ("a.txt", "text", "is neither .jsonl nor .parquet; convert it, or m2bert index"),
        ("a.parquet", "text", "a.parquet"),
        ("a.parquet", pa.table({"id": [1], "body": ["t"]}), "text"),
        ("a.parquet", pa.table({"id": [1, 2], "text": ["t", None]}), "row 2"),
        ("a.parquet", pa.table({"id": [1], "text": [3]}), "row 1"),
    ],
)
def test_embed_refuses_what_is_no_document_and_writes_nothing(tmp_path, name, content, fix):
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        pq.write_table(content, tmp_path / name)
    line = refused("embed", tmp_path / name, "--output", tmp_path / "out.parquet", "--model", "words")
    assert fix in line
    assert not (tmp_path / "out.parquet").exists()


def test_embed_of_no_documents_is_an_empty_file(tmp_path):
    (tmp_path / "a.jsonl").touch()
    called("embed", tmp_path / "a.jsonl", "--output", tmp_path / "o.parquet", "--model", "words")
    assert pq.read_table(tmp_path / "o.parquet").num_rows == 0


@pytest.mark.slow
def test_small_model_finds_the_last_page_of_five_windows_and_refuses_a_longer_query(tmp_path, monkeypatch):
    monkeypatch.undo()
    index = Index.open(tmp_path / "index", model=SMALL)
    filler = "The committee met and talked about the budget of the city. " * 5_500
    end = "The penguin ate a herring."
    index.add([{"id": "long", "text": filler + end}, {"id": "other", "text": filler}])
    assert index.encoder.count_tokens([filler])[0] > 3.5 * 16_384
    for mode in ("dense", "hybrid"):
        hit = index.search("what did the penguin eat?", mode=mode)[0]
        assert hit.id == "long"
        assert "herring" in hit.passage
    assert len(hit.matches) == 5 * 16
    with pytest.raises(ValueError, match="the model reads .* shorten it"):
        index.search(filler)
