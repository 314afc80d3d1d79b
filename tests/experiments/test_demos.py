"""The demos of examples/: what search shows, what a missing model says, what is deleted."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
DOCUMENTS = [
    "chart\nAxes and ticks.\n\nchart.bar\nDraw bars on an axis.\n\nParameters\n----------\nheights of bars",
    "net.graph\nA graph of nodes.\n\nnet.rank\nRank nodes by links and again links of the graph.",
    "frame.table\nA table of columns.",
    "frame\nNothing else.",
]


class WordsModel:
    """A sentence-transformers model whose vectors count the words of a text."""

    def encode(self, texts, show_progress_bar, batch_size=32):
        words = [text.split() for text in np.atleast_1d(texts)]
        found = [[own.count(word) for word in ("bars", "graph", "links", "table")] for own in words]
        return np.array(found, dtype=np.float32)[0 if isinstance(texts, str) else slice(None)]

    encode_query = encode_document = encode

    def similarity(self, queries, documents):
        return torch.from_numpy(np.atleast_2d(queries) @ np.atleast_2d(documents).T)


def test_search_shows_the_best_documents_and_their_best_sections(script, capsys):
    script("examples/demo.py").search(WordsModel(), DOCUMENTS, ["many bars", "links of a graph"])
    bars, links = capsys.readouterr().out.strip().split("\n\n")
    best, text, *others = bars.split("\n")[1:]
    assert best == f"  2.00  document 0, {DOCUMENTS[0].index('chart.bar') / len(DOCUMENTS[0]):.0%} into it: chart.bar"
    assert text.strip() == "Draw bars on an axis. Parameters ---------- heights of bars"  # no section of its own
    assert len(others) == 4  # two documents more
    assert links.split("\n")[1].startswith("  3.00  document 1, ")
    assert links.split("\n")[1].endswith("net.rank")


def test_a_missing_model_is_one_line_before_anything_is_done(tmp_path):
    run = subprocess.run([sys.executable, DEMO, "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert f"model={tmp_path / 'nowhere'}" in run.stderr


def test_training_again_keeps_the_results_of_the_search(script, tmp_path):
    for name in ("search/results.json", "m2bert-demo/config.json", "results.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    script("examples/demo_train.py").make_empty(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["search", "results.json"]
