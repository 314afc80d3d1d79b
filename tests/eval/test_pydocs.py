import json
import logging
import os
import subprocess
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest

from m2bert.eval.tasks import pydocs
from m2bert.eval.tasks.docstrings import Entry
from m2bert.eval.tasks.locov1 import load_task

TAIL = " The rest of the text says more about it." * 8


def as_document(sentences: list[str]) -> list[Entry]:
    return [Entry(f"pkg.f{i}", sentence + TAIL) for i, sentence in enumerate(sentences)]


def test_queries_come_from_every_part_of_a_document():
    sentences = [f"Number {i} of these sentences is not like any other." for i in range(40)]
    document = as_document(sentences)
    (queries,) = pydocs.choose_queries([document])
    assert [int(query.position * 4) for query in queries] == [0, 1, 2, 3]
    assert all(
        query.sentence == f"Number {query.entry_index} of these sentences is not like any other." for query in queries
    )


def test_a_sentence_that_stands_elsewhere_too_is_no_query():
    sentence = "Return the shortest path between two nodes of a graph."
    twice = (
        as_document([sentence]),
        [Entry("pkg.other", f"See also: return the SHORTEST path\nbetween two nodes of a graph.{TAIL}")],
    )
    assert pydocs.choose_queries(list(twice))[0] == []
    assert [query.sentence for query in pydocs.choose_queries([as_document([sentence])])[0]] == [sentence]


@pytest.mark.parametrize(
    "text",
    [
        "Only five surprisingly elongated words." + TAIL,
        "Six short words are in it." + TAIL,
        "This sentence is long enough but nothing follows after it.",
        "A heading without any final punctuation in it at all\n\n" + TAIL,
    ],
)
def test_sentences_that_make_poor_queries_are_passed_over(text):
    assert pydocs.candidate_queries([Entry("pkg.f", text)]) == []


def test_an_abbreviation_does_not_end_a_sentence():
    (query,) = pydocs.candidate_queries([Entry("pkg.f", "Read a table, e.g. one of\n    numbers, into memory." + TAIL)])
    assert query.sentence == "Read a table, e.g. one of numbers, into memory."
    assert query.rest == TAIL.strip()


def test_documents_hold_consecutive_entries_and_reach_the_size():
    entries = [Entry(f"pkg.f{i}", "word " * 200) for i in range(100)]
    documents = pydocs.pack_documents(entries, 32_000)
    assert [entry for document in documents for entry in document] == entries[: sum(map(len, documents))]
    assert all(31_000 - 2_000 < len(pydocs.render(document)) <= 32_000 for document in documents[:-1])
    assert pydocs.pack_documents(entries[:3], 32_000) == []


def test_a_cap_keeps_items_from_the_whole_list():
    assert pydocs.evenly_spaced(list(range(100)), 4) == [12, 37, 62, 87]
    assert pydocs.evenly_spaced([1, 2], 4) == [1, 2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pydocs")
    pydocs.build_pydocs(folder)
    return folder


@pytest.fixture(scope="module")
def tables(corpus):
    return {
        split: [pq.read_table(corpus / kind / f"{split}.parquet").to_pylist() for kind in ("queries", "documents")]
        for split in pydocs.SPLITS
    }


def test_the_corpus_is_the_recorded_one(corpus):
    recipe = pydocs.read_recipe()
    differences = pydocs.version_differences(recipe)
    if differences:
        pytest.skip(f"package versions are not the recorded ones: {'; '.join(differences)}")
    record = json.loads((corpus / "fingerprint.json").read_text())
    assert record["corpus_fingerprint"] == recipe["corpus_fingerprint"]
    assert record["split_fingerprints"] == recipe["split_fingerprints"]
    for split, fingerprint in recipe["split_fingerprints"].items():
        assert load_task(corpus, "pydocs", split).fingerprint == fingerprint


def test_every_split_is_a_task(corpus, tables):
    for split, (queries, documents) in tables.items():
        task = load_task(corpus, "pydocs", split)
        assert (len(task.queries), len(task.documents)) == (len(queries), len(documents))
        assert len(set(task.queries.values())) == len(queries)
    sizes = {split: len(documents) for split, (_, documents) in tables.items()}
    assert sizes["train"] > 2 * sizes["test"] > 2 * sizes["validation"] > 50


def test_queries_are_gone_from_every_document_of_their_split(tables):
    for queries, documents in tables.values():
        text = "\n".join(pydocs.plain(row["passage"]) for row in documents)
        assert [row["query"] for row in queries if pydocs.plain(row["query"]) in text] == []


def test_answers_lie_all_along_the_documents(tables):
    for queries, _ in tables.values():
        quarters = Counter(int(row["position"] * 4) for row in queries)
        assert set(quarters) == {0, 1, 2, 3}
        assert min(quarters.values()) > 0.8 * max(quarters.values())
        assert 0.4 < sum(row["position"] for row in queries) / len(queries) < 0.6


def test_no_package_dominates_and_none_is_in_two_splits(tables):
    packages = {
        split: Counter(row["passage"].split("\n", 1)[0].split(".")[0] for row in documents)
        for split, (_, documents) in tables.items()
    }
    for split, counts in packages.items():
        assert max(counts.values()) < 0.35 * counts.total(), split
    assert not packages["train"].keys() & packages["test"].keys()
    assert not packages["train"].keys() & packages["validation"].keys()
    assert not packages["validation"].keys() & packages["test"].keys()


def test_a_finished_corpus_is_not_built_again(corpus, monkeypatch):
    fingerprint = json.loads((corpus / "fingerprint.json").read_text())["corpus_fingerprint"]
    recipe = {**pydocs.read_recipe(), "corpus_fingerprint": fingerprint}
    monkeypatch.setattr(pydocs, "read_recipe", lambda: recipe)
    monkeypatch.setattr(pydocs, "collect_documents", lambda recipe: pytest.fail("was built again"))
    assert pydocs.build_pydocs(corpus) == fingerprint


def test_other_versions_warn_and_missing_packages_are_an_error(tmp_path, monkeypatch, caplog):
    recipe = {
        "corpus_fingerprint": "recorded",
        "document_chars": 32_000,
        "max_documents_per_package": {"train": 1, "validation": 1, "test": 1},
        "packages": {
            "train": {"typer": "0.0"},
            "validation": {"rich": "0.0"},
            "test": {"no-such-package": "1"},
        },
        "paths": {},
    }
    monkeypatch.setattr(pydocs, "read_recipe", lambda: recipe)
    with pytest.raises(ValueError, match="split='test': install at least one of no-such-package"):
        pydocs.build_pydocs(tmp_path)
    recipe["packages"]["test"]["click"] = "0.0"
    with caplog.at_level(logging.WARNING):
        fingerprint = pydocs.build_pydocs(tmp_path)
    assert fingerprint in caplog.text
    assert "not the recorded recorded" in caplog.text
    assert "no-such-package: recorded 1, installed None" in caplog.text
    assert "typer: recorded 0.0" in caplog.text


@pytest.mark.slow
def test_a_second_build_is_equal_and_imports_no_package_it_reads(corpus, tmp_path):
    code = (
        "import sys; from m2bert.eval.tasks.pydocs import build_pydocs; build_pydocs(sys.argv[1]);"
        "print(sorted({'sympy', 'torch', 'scipy', 'networkx', 'matplotlib'} & sys.modules.keys()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
    for first in sorted(path for path in corpus.rglob("*") if path.is_file()):
        assert (tmp_path / first.relative_to(corpus)).read_bytes() == first.read_bytes()
