"""The demos of examples/: what search marks, what a missing model says, what is deleted."""

import subprocess
import sys
from pathlib import Path

import pytest

from m2bert.search.index import Hit

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
DOCUMENTS = {
    "charts": "chart\nAxes and ticks.\n\nchart.bar\nDraw bars.\n\nParameters\nheights\n\nchart.pie\nDraw a pie.",
    "graphs": "net.graph\nA graph of nodes.\n\nnet.rank\nRank nodes by links.",
}


class FixedIndex:
    """An index whose BM25 ranks the charts first, and whose hybrid ranks the graphs first and shows a passage."""

    def __init__(self, passage: str):
        start = DOCUMENTS["graphs"].index(passage)
        length = len(DOCUMENTS["graphs"])
        self.hit = Hit("graphs", None, None, 1.0, passage, start, start + len(passage), length, [], {})

    def rank(self, question, mode, limit):
        return {"bm25": {"charts": 2.0}, "hybrid": {"graphs": 2.0, "charts": 1.0}}[mode]

    def search(self, question, limit):
        return [self.hit]


def test_sections_are_those_that_a_passage_touches(script):
    sections, text = script("examples/demo.py").sections, DOCUMENTS["charts"]
    assert sections(text) == ["chart", "chart.bar", "chart.pie"]  # "Parameters" is no section
    assert sections(text, text.index("heights"), text.index("pie.")) == ["chart.bar", "chart.pie"]
    assert sections(text, 0, 5) == ["chart"]


@pytest.mark.parametrize(("passage", "mark"), [("Rank nodes", "right"), ("A graph", "WRONG")])
def test_answers_are_marked(script, capsys, passage, mark):
    questions = {"links of a graph": "net.rank", "a tree": "net.tree"}
    script("examples/demo.py").ask(FixedIndex(passage), DOCUMENTS, questions)
    graph, tree, totals = capsys.readouterr().out.strip().split("\n\n")
    _, expected, bm25, ours, shown, text = graph.split("\n")
    assert expected.endswith("net.rank in graphs")
    assert bm25.endswith("  WRONG: charts; the expected one has rank none")
    assert ours.endswith("  right")
    assert f"passage            {mark}: net." in shown
    assert text.strip() == passage
    assert "no net.tree" in tree
    assert totals == f"right: BM25 0, words and vectors 1, passage {int(mark == 'right')} of 2"


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
