import logging
import sys

import pytest

from m2bert.eval.tasks.docstrings import MIN_DOCSTRING_CHARS, clean_docstring, read_docstrings, read_package

LONG = "Something about this object that is long enough to be kept, word after word after word. "


def test_layout_and_prompts_go_and_words_stay():
    raw = "Sum.\n\n    Examples\n    --------\n    >>> add(1, 2)\n    3\n    ==== ====\n\n\n\n"
    raw += "    ... done\n      deeper\n    "
    assert clean_docstring(raw) == "Sum.\n\nExamples\nadd(1, 2)\n3\n\ndone\n  deeper"


def test_public_docstrings_in_source_order():
    source = f'''"""{LONG}module"""
def first():
    """{LONG}first"""
    def inner():
        """{LONG}inner"""
class Thing:
    """{LONG}Thing"""
    def method(self):
        """{LONG}method"""
    def _hidden(self):
        """{LONG}hidden"""
    def short(self):
        """Too short."""
if True:
    async def last():
        """{LONG}last"""
raise RuntimeError("this module was run")
'''
    assert len(LONG) >= MIN_DOCSTRING_CHARS
    entries = read_docstrings(source.encode(), "pkg.mod")
    assert [entry.name for entry in entries] == [
        "pkg.mod",
        "pkg.mod.first",
        "pkg.mod.Thing",
        "pkg.mod.Thing.method",
        "pkg.mod.last",
    ]
    assert entries[1].text == f"{LONG}first"


@pytest.fixture
def fake_package(tmp_path, monkeypatch) -> str:
    """An installed distribution whose every module fails when it is run."""
    sources = {
        "fakepkg/__init__.py": f'"""{LONG}package"""\nraise RuntimeError',
        "fakepkg/b.py": f'"""{LONG}b"""\nraise RuntimeError',
        "fakepkg/a.py": f'"""{LONG}a"""\nraise RuntimeError',
        "fakepkg/copy.py": f'"""{LONG}a"""\nraise RuntimeError',
        "fakepkg/later.py": f'"""{LONG}later"""\ndef =',
        "fakepkg/tests/test_a.py": f'"""{LONG}test"""',
        "fakepkg/_vendor/other.py": f'"""{LONG}vendored"""',
        "fakepkg-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: fakepkg\nVersion: 1.0\n",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    record = "".join(f"{name},,\n" for name in sources)
    (tmp_path / "fakepkg-1.0.dist-info" / "RECORD").write_text(record, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "fakepkg"


def test_a_package_is_read_but_never_imported(fake_package, caplog):
    with caplog.at_level(logging.WARNING):
        entries = read_package(fake_package, None, set())
    assert [entry.name for entry in entries] == ["fakepkg", "fakepkg.a", "fakepkg.b"]
    assert "fakepkg/later.py" in caplog.text
    assert fake_package not in sys.modules


def test_known_texts_and_other_paths_are_left_out(fake_package):
    seen = {f"{LONG}b"}
    assert [entry.name for entry in read_package(fake_package, None, seen)] == ["fakepkg", "fakepkg.a"]
    assert f"{LONG}a" in seen
    assert [entry.name for entry in read_package(fake_package, ["fakepkg/b"], set())] == ["fakepkg.b"]
