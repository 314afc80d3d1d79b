"""The demos of examples/: what search shows, what is plotted, what a missing model says, what is deleted."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Import a file of examples/ as it is imported when it runs there."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


class WordsModel:
    """A sentence-transformers model whose vectors count the words of a text."""

    words = ("bars", "graph", "links", "table")

    def tokenizer(self, texts, truncation):
        return {"input_ids": [text.split() for text in texts]}

    def encode(self, texts, show_progress_bar):
        if isinstance(texts, str):
            return self.encode([texts], show_progress_bar)[0]
        return np.array([[text.split().count(word) for word in self.words] for text in texts], dtype=np.float32)

    encode_query = encode_document = encode

    def similarity(self, queries, documents):
        queries, documents = np.atleast_2d(queries), np.atleast_2d(documents)
        return torch.from_numpy(queries @ documents.T)


def test_search_shows_the_best_documents_and_their_best_sections(example, capsys):
    documents = [
        "chart\nAxes and ticks.\n\nchart.bar\nDraw bars on an axis.\n\nParameters\n----------\nheights of bars",
        "net.graph\nA graph of nodes.\n\nnet.rank\nRank nodes by links and again links of the graph.",
        "frame.table\nA table of columns.",
        "frame\nNothing else.",
    ]
    example("demo").search(WordsModel(), documents, ["many bars", "links of a graph"])
    bars, links = capsys.readouterr().out.strip().split("\n\n")
    best, text, *others = bars.split("\n")[1:]
    assert best == f"  2.00  document 0, {documents[0].index('chart.bar') / len(documents[0]):.0%} into it: chart.bar"
    assert text.strip() == "Draw bars on an axis. Parameters ---------- heights of bars"  # no section of its own
    assert len(others) == 4  # two documents more
    assert links.startswith("links of a graph\n  3.00  document 1, ")
    assert links.split("\n")[1].endswith("net.rank")


def test_sections_cover_the_whole_document(example):
    document = "name\nText.\n\npkg.one\n\n\npkg.two\nMore.\n\nNotes\n-----\nText\n\npkg.sub.three\nThe end."
    sections = [match.group(1, 2) for match in example("demo").SECTION.finditer(document)]
    assert [name for name, _ in sections] == ["name", "pkg.one", "pkg.two", "pkg.sub.three"]
    assert [text.strip() for _, text in sections] == ["Text.", "", "More.\n\nNotes\n-----\nText", "The end."]


def record(policy, score, hybrid=None):
    interval = {"ndcg_at_10": score, "interval_95": [score - 0.05, score + 0.05]}
    return interval | {
        "name": "bm25" if policy == "whole" else "m2bert-small",
        "policy": policy,
        "hybrid": hybrid,
        "counts": {"queries": 381, "documents": 108},
        "by_quarter": [{"quarter": number, **interval} for number in (1, 2, 3, 4)],
    }


def test_the_plot_names_every_system(example, tmp_path):
    demo_plot = example("demo_plot")
    helped = {"with": "bm25", "method": "weighted"}
    models = [record(policy, 0.7, hybrid) for policy in ("truncate", "late-chunk") for hybrid in (None, helped)]
    records = [record("whole", 0.86), *models]
    labels = [demo_plot.label(one) for one in records]
    assert len({*labels}) == 5
    assert labels[:3] == [
        "BM25, words and no vectors",
        "m2bert-small, one vector a document",
        "m2bert-small, one vector a document, with BM25",
    ]
    assert demo_plot.points(records[0]) == pytest.approx((86, 5, 5))
    (tmp_path / "results.json").write_text(json.dumps({"format": 1, "results": records}))
    demo_plot.plot(tmp_path / "results.json", tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_model_is_one_line_before_anything_is_done(tmp_path):
    command = [sys.executable, EXAMPLES / "demo.py", "nowhere"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith(f"demo: model={tmp_path / 'nowhere'} is no folder")


def test_training_again_keeps_the_results_of_the_search(example, tmp_path):
    for name in ("search/results.json", "m2bert-demo/config.json", "results.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    example("demo_train").make_empty(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["search", "results.json"]
