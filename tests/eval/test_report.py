"""Reading result files, and the Markdown and HTML files of a report."""

import json
import re
from html.parser import HTMLParser

import pytest
from fabricated_records import bm25, clusters, efficiency, example, lengths, mteb, needle, retrieval, spans
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from m2bert.eval.report import page as page_module
from m2bert.eval.report.page import app, load_results
from m2bert.eval.report.plots import CostPoint, pareto_front, spread
from m2bert.eval.report.tables import escape, table

PLAIN = ["gov_report", "+12.3", "91.0", "a (b)"]  # which are not escaped
SCRIPT = '<script>alert("x")</script> | a *pipe* & more'


def write(path, *records, **content):
    path.write_text(json.dumps({"format": 1, "results": records} | content), encoding="utf-8")
    return path


def report(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The Markdown and the HTML of a report on every kind of record, with an unreadable file among them."""
    folder = tmp_path_factory.mktemp("report")
    results = write(
        folder / "results.json",
        bm25(),
        retrieval(SCRIPT, failures=[example(SCRIPT, rank=None)], paper_row="M2-BERT-2k", claim="fine-tuned"),
        retrieval("b / truncate", 0.6, seconds_per_document=0.1),
        bm25(task="gov_report"),
        *(mteb(), needle(), lengths(), spans(), clusters(), efficiency()),
    )
    broken = folder / "broken.json"
    broken.write_text("{", encoding="utf-8")
    outputs = ["--output", folder / "r.md", "--output", folder / "r.html"]
    outcome = report(results, broken, *outputs, "--title", "A <b> title")
    assert outcome.exit_code == 0, outcome.output
    assert "broken.json" in outcome.stderr
    return (folder / "r.md").read_text(encoding="utf-8"), (folder / "r.html").read_text(encoding="utf-8"), folder


class Page(HTMLParser):
    """What a page is made of: its tags with attributes, and whether they close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "link", "img", "input", "hr"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def values(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def test_the_page_needs_nothing_but_itself_and_its_links_lead_somewhere(pages):
    markdown, text, folder = pages
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert len(page.values("src")) >= 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.values("src"))
    assert not re.search(r"url\(|@import", text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {"source.1", "sources", "qmsum-test"} <= set(ids)
    assert {f"#{name}" for name in ids} >= set(page.values("href")) >= {"#source.1", "#qmsum-test"}
    names = re.findall(r"\]\((r-plots/[^)]+)\)", markdown)
    assert len(names) >= 4
    assert all("<svg" in (folder / name).read_text(encoding="utf-8") for name in names)


def test_texts_of_results_stay_texts_and_long_tables_of_them_are_folded(pages):
    markdown, html, _ = pages
    assert "<script" not in html
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; | a *pipe* &amp; more" in html
    assert "<title>A &lt;b&gt; title</title>" in html
    assert "<script" not in markdown.replace("\\<script", "")
    assert "#### qmsum, test: \\<script\\>" in markdown
    assert re.search(r"<details>\n<summary>qmsum, test: &lt;script&gt;.*</summary>\n<div class=\"box\"", html)
    assert html.count("<details>") == html.count("</details>") == 3
    for text in (markdown, html):
        assert "Results that could not be read" in text
        assert "broken.json" in text


def test_markdown_tables_are_rectangular_and_aligned(pages):
    blocks = [[line for line in block.split("\n") if line] for block in re.split(r"\n\n+", pages[0]) if block[0] == "|"]
    assert len(blocks) > 8
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1
        assert re.fullmatch(r"(\| -+:? )+\|", block[1])
    assert sum(len(set(map(len, block))) == 1 for block in blocks) > 6  # where no cell is very long


def test_bad_outputs_and_inputs_end_the_command_before_anything_is_written(tmp_path):
    results, mine = write(tmp_path / "x.json", bm25()), tmp_path / "mine.md"
    mine.write_text("mine", encoding="utf-8")
    for path, output, named in (
        (results, "r.pdf", "must end in .md or .html"),
        (results, "mine.md", "mine.md exists"),
        (write(tmp_path / "y.json", format=7), "r.md", "format is 7"),
    ):
        outcome = report(path, "--output", tmp_path / output)
        assert outcome.exit_code == 2
        assert named in outcome.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "y.json", "mine.md"}
    assert mine.read_text(encoding="utf-8") == "mine"
    assert report(results, "--output", mine, "--overwrite").exit_code == 0


def test_nothing_is_written_before_all_is_rendered(tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("no page today")

    monkeypatch.setattr(page_module, "html_page", fail)
    results = write(tmp_path / "x.json", bm25(), retrieval())
    assert report(results, "--output", tmp_path / "r.md", "--output", tmp_path / "r.html").exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"kind": "poem"}, "kind 'poem' is unknown"),
        ({key: value for key, value in bm25().items() if key != "query_scores"}, "query_scores is missing"),
        (bm25(interval_95=[0.1]), "interval_95 is [0.1]"),
        (needle(rows=[{"position": 1}]), "rows[0].ndcg_at_10 is missing"),
        (bm25(ndcg_at_10=0.5), "ndcg_at_10=0.5 is not the mean of query_scores"),
        (bm25(query_scores={"q1": 1.5}), "query_scores.q1 is 1.5"),
        (needle(split=["test"]), "split is ['test']"),
    ],
)
def test_a_broken_record_is_named_and_the_others_kept(tmp_path, record, fault):
    results = load_results([write(tmp_path / "x.json", retrieval(), record)])
    assert len(results.records["retrieval"]) == 1
    (problem,) = results.problems
    assert "record 1 of" in problem
    assert fault in problem


def test_files_of_other_forms_are_problems(tmp_path):
    path = tmp_path / "x.json"
    for content in ("[" * 9999, '{"format": 1, "results": [NaN]}', '{"format": 1, "format": 1}', "7"):
        path.write_text(content)
        (problem,) = load_results([path]).problems
        assert str(path) in problem


def test_names_of_any_length_and_letters_make_files_of_their_own(tmp_path):
    """Two long names that begin alike, and two that differ in letters which no file's name keeps."""
    long = "t" * 240
    records = [
        retrieval(name, score, task=task, seconds_per_document=score)
        for task in (f"{long}a", f"{long}b", "x/y", "x y")
        for name, score in (("a / truncate", 0.5), ("b / truncate", 0.6))
    ]
    results = write(tmp_path / "x.json", *records)
    outcome = report(results, "--output", tmp_path / "r.html", "--output", tmp_path / "r.md")
    assert outcome.exit_code == 0, outcome.stderr
    named = re.findall(r"\]\(r-plots/([^)]+)\)", (tmp_path / "r.md").read_text(encoding="utf-8"))
    assert len(named) == len(set(named)) == 4
    assert sorted(path.name for path in (tmp_path / "r-plots").iterdir()) == sorted(named)
    ids = Page((tmp_path / "r.html").read_text(encoding="utf-8")).values("id")
    assert len(ids) == len(set(ids))


def test_control_characters_of_a_result_reach_neither_page_nor_terminal(tmp_path):
    name = "a\x1b[2J\nb\u202ec"
    record = retrieval(name, task=name, paper_row=name, failures=[example(name)], trained_on=[name], device=name)
    broken = {**record, "split": [name]}
    results = write(tmp_path / "x.json", record, broken, clusters(name, sources={name: 3}), needle(name, task=name))
    outcome = report(results, "--output", tmp_path / "r.html", "--output", tmp_path / "r.md")
    assert outcome.exit_code == 0
    for text in (outcome.stderr, *((tmp_path / f"r.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))):
        assert not re.search("[\x1b\u202e]", text)
        assert "a\\x1b" in text.replace("\\\\", "\\")


def test_the_later_of_two_measurements_wins_and_a_note_says_so(tmp_path):
    old = write(tmp_path / "old.json", bm25(0.5, date="2026-01-01"), mteb())
    new = write(tmp_path / "new.json", bm25(0.9, date="2026-02-01"), bm25(0.4, data_fingerprint="cd" * 32), mteb())
    for paths in ([old, new], [new, old]):
        results = load_results(paths)
        assert sorted(record["ndcg_at_10"] for record in results.records["retrieval"]) == [0.4, 0.9]
        (note,) = results.notes
        assert note.startswith("retrieval, bm25, qmsum, test: measured twice")
        assert note.endswith("new.json wins")


def test_unknown_rows_of_the_paper_and_names_that_models_share_are_noted(tmp_path):
    records = [retrieval(), retrieval(task="gov_report"), bm25(), bm25(task="gov_report")]
    assert load_results([write(tmp_path / "one.json", *records)]).notes == []
    records[0]["paper_row"], records[1]["model_fingerprint"] = "M2-BERT-32K", "7f" * 32
    row, names = load_results([write(tmp_path / "two.json", *records)]).notes
    assert "qmsum, test: the paper has no row 'M2-BERT-32K'; did you mean 'M2-BERT-32k'?" in row
    assert names.startswith("encoder / truncate: its records are of 2 models")
    assert "5e5e5e5e, 7f7f7f7f" in names


def test_labels_move_apart_within_the_plot_and_the_front_holds_what_nothing_cheaper_beats():
    assert spread([0.2, 0.98, 0.99, 1.0], 0.1) == pytest.approx([0.2, 0.8, 0.9, 1.0])
    points = [CostPoint(name, *rest, "") for name, *rest in [("a", 1, 5), ("b", 2, 4), ("c", 3, 6), ("d", 3, 7)]]
    assert [point.system for point in pareto_front(points)] == ["a", "d"]


@pytest.mark.parametrize(
    "text",
    [
        "gov_report", "a | b", "*x* `y` _z_ **w**", "# no heading", "<2k & $5 &amp; <b>", "1. one", "- a", "---", "===",
        "\\| \\", "`|`", "![a](b.png)", "<https://a.b>", "~~a~~", "> a", "+ 12.3", "[a]: b", *PLAIN[1:],
    ],
)  # fmt: skip
def test_markdown_shows_texts_as_they_are(text):
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    found = parser.parse(f"above\n\n{escape(text)}\n\n{table('caption', [text], [[text], [text]])}\n")
    shown = ["".join(child.content for child in token.children) for token in found if token.type == "inline"]
    assert shown == ["above", text, "caption", *[text] * 3]
    assert all(child.type.startswith("text") for token in found for child in token.children or [])
    assert [token.type for token in found if token.type == "paragraph_open"] == ["paragraph_open"] * 3
    assert (escape(text) == text) == (text in PLAIN)
