"""Strict readers, whole writes, claims, schemas and foreign text."""

import gzip
import json
import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
import typer
from pydantic import model_validator

from m2bert.files import (
    check_writable,
    claimed,
    parse_json,
    parse_yaml,
    read_json,
    read_json_lines,
    read_text,
    read_yaml,
    shards,
    visible,
    write_atomically,
)
from m2bert.schema import FOREIGN, Schema, checked
from m2bert.terminal import Ended, LineFormatter, masked, one_line, run_command, shown


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (parse_json, "{", "valid JSON"),
        (parse_json, "[" * 100_000, "recursion"),
        (parse_json, '{"a": NaN}', "NaN"),
        (parse_json, '{"a": -Infinity}', "Infinity"),
        (parse_json, '{"a": 1e999}', "1e999"),
        (parse_json, '{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"),
        (parse_json, r'{"a": ["\ud83d"]}', "surrogate"),
        (parse_yaml, "a: [", "valid YAML"),
        (parse_yaml, "[" * 10_000, "recursion"),
        (parse_yaml, "a: &x [1]\nb: *x", "aliases"),
        (parse_yaml, "a: 1\nb: 2\na: 3", "'a' stands twice"),
        (parse_yaml, 'a: "\\ud83d"', "surrogate"),
        (parse_yaml, "a: !!python/name:os.system", "valid YAML"),
    ],
)
def test_text_that_is_refused(parse, text, says):
    with pytest.raises(ValueError, match=f"^the file .*{says}"):
        parse(text, "the file")


def test_json_that_is_read(tmp_path):
    value = {"a": "\U0001f600", "b": [1, 1.5, None, "\u2028", "é", True]}
    assert parse_json(json.dumps(value), "x") == value
    (tmp_path / "x.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8-sig")
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[no, on, yes, OFF]", ["no", "on", "yes", "OFF"]),
        ("[true, False, ~, null, ]", [True, False, None, None]),
        ("[010, -7, 0x1f, 0o17, 1e-3, 1., .5, -2.5E2]", [10, -7, 31, 15, 1e-3, 1.0, 0.5, -250.0]),
        ("[12:30:00, 2026-11-28, '1']", ["12:30:00", "2026-11-28", "1"]),
        ("a:", {"a": None}),
    ],
)
def test_yaml_scalars_are_those_of_the_core_schema(text, value):
    assert parse_yaml(text, "x") == value


def test_files_that_are_refused_are_named(tmp_path):
    path = tmp_path / "x.json"
    for read in (read_json, read_yaml, read_text):
        with pytest.raises(ValueError, match="x.json cannot be read"):
            read(path)
    path.write_bytes(b"\xff")
    for read in (read_json, read_yaml, read_text, lambda path: list(read_json_lines(path))):
        with pytest.raises(ValueError, match="x.json.*UTF-8"):
            read(path)
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\ncaf\xe9\n")
    with pytest.raises(ValueError, match="x.json, line 3 is not UTF-8"):
        read_text(path)
    path.write_text("[1]")
    for read in (read_json, read_yaml):
        with pytest.raises(ValueError, match="x.json holds no"):
            read(path)
    path.write_text('{"a": 1}\n\n{"a": "\\ud83d"}\n')
    lines = read_json_lines(path)
    assert next(lines) == (1, {"a": 1})
    with pytest.raises(ValueError, match="x.json, line 3 .*surrogate"):
        next(lines)


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "new" / "x"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert [p.name for p in path.parent.iterdir()] == ["x"]
    assert path.read_text() == "old"


def test_what_cannot_be_written_is_told_and_a_try_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    for name in ("new/folder/x.json", "x.json", "file"):
        check_writable(tmp_path / name)
    for path in (tmp_path / "file" / "x.json", tmp_path / ("x" * 300), tmp_path / "new" / ("x" * 300), Path("/proc/x")):
        with pytest.raises(ValueError, match="cannot be written"):
            check_writable(path)
    (tmp_path / ".m2bert-check.partial" / "left by a killed process").mkdir(parents=True)
    check_writable(tmp_path / "x.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_claim_keeps_other_processes_out_until_its_own_is_killed(tmp_path):
    folder = tmp_path / "run"
    code = f"""
import time; from pathlib import Path; from m2bert.files import claimed
with claimed(Path({str(folder)!r})):
    print("held", flush=True); time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another process writes to"), claimed(folder):
            pass
    finally:
        process.kill()
        process.wait()
    with claimed(folder):
        folder.rmdir()
    with claimed(folder):
        assert folder.is_dir()


def test_a_claim_can_be_waited_for_while_its_folder_is_renamed(tmp_path):
    waiting = threading.Event()

    def wait():
        waiting.set()
        with claimed(tmp_path / "run", wait=True) as folder:
            return folder.is_dir() and list(folder.iterdir()) == []

    with ThreadPoolExecutor(1) as threads:
        with claimed(tmp_path / "run") as folder:
            second = threads.submit(wait)
            waiting.wait()
            time.sleep(0.05)
            assert not second.done()
            (folder / "x").touch()
            folder.rename(tmp_path / "finished")
        assert second.result(timeout=60)


class Part(Schema):
    heads: int = 1

    @model_validator(mode="after")
    def positive(self):
        if self.heads < 1:
            raise ValueError(f"{self.heads} is not positive")
        return self


class Foreign(Schema):
    model_config = FOREIGN
    size: int


class Card(Schema):
    foreign: Foreign | None = None
    parts: tuple[Part, ...] | None = None
    language: list[str] = []
    license: str | None = None
    pooling: Part = Part()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"language": ["en", 1]}, r"about.yaml: language\[1\] is 1; input should be a valid string"),
        ({"licence": "mit"}, "about.yaml: unknown key 'licence'; did you mean 'license'"),
        ({"pooling": {"head": 1}}, "about.yaml: unknown key 'pooling.head'; did you mean 'heads'"),
        ({"parts": ({}, {"head": 1})}, r"about.yaml: unknown key 'parts\[1\].head'; did you mean 'heads'"),
        ({"pooling": {"heads": True}}, "about.yaml: pooling.heads is True"),
        ({"pooling": {"heads": 0}}, "^about.yaml: pooling: 0 is not positive$"),
        ({"foreign": {}}, "about.yaml: foreign.size is missing"),
        ([], "about.yaml: the value is"),
    ],
)
def test_a_schema_names_the_place(value, says):
    with pytest.raises(ValueError, match=says):
        checked(Card, value, "about.yaml")
    assert checked(Card, {"language": ["no"], "foreign": {"size": 1, "other": object()}}, "x").foreign.size == 1


def test_foreign_text_cannot_steer_the_terminal():
    assert shown("a\x1b[2Jb\nc\u202e\u2028d é") == "a\\x1b[2Jb\\nc\\u202e\\u2028d é"
    assert one_line(ValueError("one\n  two\x07")) == "one two\\x07"
    assert len(one_line("x" * 100_000)) < 2100
    record = logging.LogRecord("n", logging.INFO, "f", 1, "task %s", ("one\nERROR fake",), None)
    assert LineFormatter("%(levelname)s %(message)s").format(record) == "INFO task one\\nERROR fake"


HF = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (f"Bearer {HF}, sent", "Bearer <token>, sent"),
        (f"hf_oauth_{'a' * 30}.{'b' * 30}.c-d_{'e' * 20}!", "<token>!"),
        ("GET https://me:pass-word@hub.example/org/name: 1", "GET https://<secret>@hub.example/org/name: 1"),
        ("https://hub.example/x?page=2&X-Amz-Signature=abc'", "https://hub.example/x?page=2&X-Amz-Signature=<secret>'"),
        ("hf_hub_download(a) of https://hub.example/a@main, me@example.org, max_token=3, layers.0.hf_weight", None),
    ],
)
def test_no_token_and_no_password_reaches_the_terminal(text, seen):
    assert masked(text) == shown(text) == one_line(text) == (seen or text)


def test_every_librarys_log_and_a_traceback_are_masked():
    """Of its own handler as well, made before and after logging is set up."""
    code = f"""
import logging
library = logging.getLogger("library")
library.addHandler(logging.StreamHandler())
from m2bert.terminal import log_to_terminal, run_command
log_to_terminal()
library.addHandler(logging.StreamHandler())
def fail():
    try:
        raise RuntimeError("{HF}")
    except RuntimeError:
        library.warning("GET %s", "https://me:secret@hub", exc_info=True)
        raise
run_command("x", fail)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.count("GET https://<secret>@hub") == 3
    assert result.stderr.count("RuntimeError: <token>") == 4
    assert "secret@" not in result.stderr.replace("<secret>@", "")
    assert HF not in result.stderr.replace(f'raise RuntimeError("{HF}")', "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("bad\nthing"), 2),
        (OSError("gone"), 2),
        (ModuleNotFoundError(name="mteb.models"), 2),
        (typer.BadParameter("no such folder", param_hint="--data"), 2),
        (KeyboardInterrupt(), 130),
        (Ended("all there is"), 0),
    ],
)
def test_bad_input_is_one_line_and_a_status(error, code, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command("m2bert", Mock(side_effect=error))
    assert stop.value.code == code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_what_other_programs_put_into_a_folder_is_not_visible(tmp_path):
    folder = tmp_path / ".home"  # the folder's own name does not matter
    for name in (".git/a.txt", "b/.DS_Store", "b/._c.txt", "__MACOSX/b/._c.txt", "__MACOSX/d.txt", "b/c.txt", "d.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert visible(folder, "**/*.txt") == [folder / "b" / "c.txt", folder / "d.txt"]


def test_packed_lines_and_texts_are_read(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    packed = gzip.compress(b'\xef\xbb\xbf{"a": 1}\r\n\n[2]\n')
    path.write_bytes(packed)
    assert list(read_json_lines(path)) == [(1, {"a": 1}), (3, [2])]
    assert read_text(path) == '{"a": 1}\n\n[2]\n'
    for damaged in (packed[:-12], packed[:12] + b"x" * 9, b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x.jsonl.gz, after line \d, cannot be unpacked"):
            list(read_json_lines(path))
        with pytest.raises(ValueError, match="x.jsonl.gz cannot be read"):
            read_text(path)


def test_the_parts_of_a_split_are_found_all_or_none(tmp_path):
    names = [f"test-0000{number}-of-00002.parquet" for number in range(2)]
    for name in (*names, "test-hard.parquet", "._test.parquet", "a-test.jsonl", "train.jsonl"):
        (tmp_path / name).touch()
    suffixes = (".parquet", ".jsonl")
    assert [path.name for path in shards(tmp_path, "test", suffixes)] == names
    assert [path.name for path in shards(tmp_path, "train", suffixes)] == ["train.jsonl"]
    assert shards(tmp_path, "dev", suffixes) == shards(tmp_path / "gone", "test", suffixes) == []
    (tmp_path / names[0]).unlink()
    with pytest.raises(ValueError, match="test-00001-of-00002.parquet: not all 2 parts"):
        shards(tmp_path, "test", suffixes)
    (tmp_path / "test.parquet").touch()
    assert [path.name for path in shards(tmp_path, "test", suffixes)] == ["test.parquet"]


def test_a_reader_that_is_gone_ends_a_command_without_a_word():
    code = "from m2bert.terminal import run_command; run_command('x', lambda: [print('y' * 99) for _ in range(10**5)])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
    code = (
        "from m2bert.terminal import run_command; import errno\ndef f(): raise BrokenPipeError(errno.EPIPE, 'a socket')"
    )
    done = subprocess.run([sys.executable, "-c", f"{code}\nrun_command('x', f)"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "x: [Errno 32] a socket\n")
