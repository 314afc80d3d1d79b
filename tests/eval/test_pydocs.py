"""The corpus of installed documentation: which texts and queries it takes, and that it is the recorded one."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from m2bert.eval.tasks import pydocs
from m2bert.eval.tasks.pydocs import MIN_DOCSTRING_CHARS, Entry, clean_docstring, read_docstrings, read_package
from m2bert.eval.tasks.schema import load_task

LONG = "Something about this object that is long enough to be kept, word after word after word. "
TAIL = " The rest of the text says more about it." * 8


def test_a_sentence_that_stands_elsewhere_too_is_no_query():
    sentence = "Return the shortest path between two nodes of a graph."
    other = [Entry("pkg.other", f"See also: return the SHORTEST path\nbetween two nodes of a graph.{TAIL}")]
    document = [Entry("pkg.f", sentence + TAIL)]
    assert pydocs.choose_queries([document, other])[0] == []
    assert [query.sentence for query in pydocs.choose_queries([document])[0]] == [sentence]


def test_a_query_is_a_whole_sentence():
    (query,) = pydocs.candidate_queries([Entry("pkg.f", "Read a table, e.g. one of\n    numbers, into memory." + TAIL)])
    assert query.sentence == "Read a table, e.g. one of numbers, into memory."
    assert query.rest == TAIL.strip()


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
    names = ["pkg.mod", "pkg.mod.first", "pkg.mod.Thing", "pkg.mod.Thing.method", "pkg.mod.last"]
    assert [entry.name for entry in entries] == names
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
    entries = read_package(fake_package, None, set())
    assert [entry.name for entry in entries] == ["fakepkg", "fakepkg.a", "fakepkg.b"]
    assert "fakepkg/later.py" in caplog.text
    seen = {f"{LONG}b"}
    assert [entry.name for entry in read_package(fake_package, None, seen)] == ["fakepkg", "fakepkg.a"]
    assert f"{LONG}a" in seen
    assert [entry.name for entry in read_package(fake_package, ["fakepkg/b"], set())] == ["fakepkg.b"]
    assert fake_package not in sys.modules


def small_recipe(**packages) -> dict:
    """A corpus of few packages; none is recorded."""
    packages = {
        "train": {"joblib": "0", "typer": "0"},
        "validation": {"fsspec": "0"},
        "test": {"click": "0"},
    } | packages
    sizes = dict.fromkeys(packages, 6)
    return {"corpus_fingerprint": "recorded", "document_chars": 32_000, "max_documents_per_package": sizes,
            "packages": packages, "paths": {}}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pydocs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydocs, "read_yaml", lambda path: small_recipe())
        pydocs.build_pydocs(folder)
    return folder


def check_corpus(corpus) -> dict[str, Counter]:
    """Each split is a task whose queries are unique and gone from all documents; no package is in two splits."""
    packages = {}
    fingerprints = json.loads((corpus / "fingerprint.json").read_text())["split_fingerprints"]
    for split in pydocs.SPLITS:
        task = load_task(corpus, "pydocs", split)
        assert task.fingerprint == fingerprints[split]
        assert len(set(task.queries.values())) == len(task.queries) == len(task.positions) > 0
        text = "\n".join(map(pydocs.plain, task.documents.values()))
        assert [query for query in task.queries.values() if pydocs.plain(query) in text] == []
        packages[split] = Counter(passage.split("\n", 1)[0].split(".")[0] for passage in task.documents.values())
    assert sum(len(counts) for counts in packages.values()) == len(set().union(*packages.values()))
    return packages


def test_a_small_corpus(corpus):
    packages = check_corpus(corpus)
    assert (set(packages["train"]), set(packages["test"])) == ({"joblib", "typer"}, {"click"})


def test_a_finished_corpus_is_not_built_again(corpus, monkeypatch):
    fingerprint = json.loads((corpus / "fingerprint.json").read_text())["corpus_fingerprint"]
    monkeypatch.setattr(pydocs, "read_yaml", lambda path: {**small_recipe(), "corpus_fingerprint": fingerprint})
    monkeypatch.setattr(pydocs, "collect_documents", lambda recipe: pytest.fail("was built again"))
    assert pydocs.build_pydocs(corpus) == fingerprint


def test_other_versions_warn_and_missing_packages_are_an_error(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pydocs, "read_yaml", lambda path: small_recipe(test={"no-such-package": "1"}))
    with pytest.raises(ValueError, match="split='test': install at least one of no-such-package"):
        pydocs.build_pydocs(tmp_path)
    monkeypatch.setattr(pydocs, "read_yaml", lambda path: small_recipe(test={"no-such-package": "1", "click": "0.0"}))
    fingerprint = pydocs.build_pydocs(tmp_path)
    for part in (fingerprint, "not the recorded recorded", "no-such-package: recorded 1, installed None", "click: rec"):
        assert part in caplog.text


@pytest.mark.slow
def test_the_recorded_corpus(tmp_path):
    """Built in a process with other hashes of strings, which imports no package that it reads."""
    code = (
        "import sys; from m2bert.eval.tasks.pydocs import build_pydocs; build_pydocs(sys.argv[1]);"
        "print(sorted({'sympy', 'torch', 'scipy', 'networkx', 'matplotlib'} & sys.modules.keys()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
    packages = check_corpus(tmp_path)
    sizes = {split: counts.total() for split, counts in packages.items()}
    assert sizes["train"] > 2 * sizes["test"] > 2 * sizes["validation"] > 50
    for split, counts in packages.items():
        assert max(counts.values()) < 0.35 * sizes[split], "one package dominates"
        positions = load_task(tmp_path, "pydocs", split).positions.values()
        quarters = Counter(int(position * 4) for position in positions)
        assert set(quarters) == {0, 1, 2, 3}
        assert min(quarters.values()) > 0.8 * max(quarters.values())
        assert 0.4 < sum(positions) / len(positions) < 0.6
    recipe = pydocs.read_yaml(pydocs.RECIPE)
    if others := [name for name, (old, new) in pydocs.package_versions(recipe).items() if old != new]:
        pytest.skip(f"package versions are not the recorded ones: {', '.join(others)}")
    record = json.loads((tmp_path / "fingerprint.json").read_text())
    for name in ("corpus_fingerprint", "split_fingerprints"):
        assert record[name] == recipe[name]
