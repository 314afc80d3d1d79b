import json
import re
from html.parser import HTMLParser

import pytest
from fabricated_records import bm25, clusters, efficiency, example, lengths, mteb, needle, retrieval, spans
from typer.testing import CliRunner

from m2bert.eval.report import pages as pages_module
from m2bert.eval.report.cli import app
from m2bert.eval.report.pages import escape_markdown
from m2bert.eval.report.plots import CostPoint, pareto_front, spread
from m2bert.eval.report.results import load_results

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
    outcome = report(
        results, broken, "--output", folder / "r.md", "--output", folder / "r.html", "--title", "A <b> title"
    )
    assert outcome.exit_code == 0, outcome.output
    assert "broken.json" in outcome.stderr
    return (folder / "r.md").read_text(encoding="utf-8"), (folder / "r.html").read_text(encoding="utf-8"), folder


class Page(HTMLParser):
    """What a page is made of: its tags with attributes, and whether they close in order."""

    VOID = {"meta", "br", "link", "img", "input", "hr"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(pages):
    page = Page(pages[1])
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    places = [value for _, attrs in page.tags for name, value in attrs.items() if name.endswith(("src", "href"))]
    assert places
    assert all(place.startswith("#") for place in places)
    assert not re.search(r"url\((?!#)|@import", pages[1])


def test_ids_are_unique_and_every_link_leads_somewhere(pages):
    page = Page(pages[1])
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert links <= set(ids)


def test_texts_of_results_stay_texts(pages):
    markdown, html, _ = pages
    assert "<script" not in html
    assert "&lt;script&gt;alert" in html
    assert "<title>A &lt;b&gt; title</title>" in html
    assert "<script" not in markdown.replace("\\<script", "")


def test_markdown_tables_are_rectangular_and_aligned(pages):
    lines = pages[0].split("\n")
    blocks = [[line for line in block.split("\n") if line] for block in re.split(r"\n\n+", pages[0]) if block[0] == "|"]
    assert len(blocks) > 8
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block}) == 1
        assert len({len(line) for line in block}) == 1
        assert re.fullmatch(r"(\| -+:? )+\|", block[1])
    assert any("| bm25" in line for line in lines)


def test_plots_of_a_markdown_report_lie_beside_it(pages):
    markdown, _, folder = pages
    names = re.findall(r"\]\((r-plots/[^)]+)\)", markdown)
    assert len(names) >= 4
    for name in names:
        svg = (folder / name).read_text(encoding="utf-8")
        assert svg.startswith("<svg")
        assert "currentColor" not in svg
        assert "var(" not in svg


def test_an_unreadable_file_is_named_in_the_report(pages):
    for text in pages[:2]:
        assert "Results that could not be read" in text
        assert "broken.json" in text


def test_nothing_readable_is_an_error(tmp_path):
    outcome = report(write(tmp_path / "x.json", format=7), "--output", tmp_path / "r.md")
    assert outcome.exit_code == 2
    assert "format 7" in outcome.stderr
    assert not (tmp_path / "r.md").exists()


def test_outputs_are_checked_before_work(tmp_path):
    results = write(tmp_path / "x.json", bm25())
    outcome = report(results, "--output", tmp_path / "r.pdf")
    assert outcome.exit_code == 2
    assert "must end in .md or .html" in outcome.stderr
    (tmp_path / "r.md").write_text("mine", encoding="utf-8")
    assert report(results, "--output", tmp_path / "r.md").exit_code == 2
    assert (tmp_path / "r.md").read_text(encoding="utf-8") == "mine"
    assert report(results, "--output", tmp_path / "r.md", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ("text", "kind None is unknown"),
        ({"kind": "poem"}, "kind 'poem' is unknown"),
        ({"kind": ["retrieval"]}, "is unknown"),
        ({key: value for key, value in bm25().items() if key != "query_scores"}, "query_scores is missing"),
        (bm25(ndcg_at_10=None), "ndcg_at_10 is None"),
        (bm25(interval_95=[0.1]), "interval_95 is [0.1]"),
        (bm25(counts=None), "counts is None"),
        (bm25(by_length={"tokenizer": "bert", "rows": []}), "by_length.rows is []"),
        (needle(rows=[{"position": 1}]), "rows[0].ndcg_at_10 is missing"),
        (spans(quarters=[1, 2]), "quarters is [1, 2]"),
        (bm25(ndcg_at_10=91.0), "ndcg_at_10 is 91.0"),
        (bm25(ndcg_at_10=0.5), "ndcg_at_10=0.5 is not the mean of query_scores"),
        (bm25(query_scores={"q1": 1.5}), "query_scores.q1 is 1.5"),
        (retrieval(seconds_per_document=-1), "seconds_per_document is -1"),
        (needle(split=["test"]), "split is ['test']"),
        (clusters(model_fingerprint=7), "model_fingerprint is 7"),
    ],
)
def test_a_broken_record_is_named_and_the_others_kept(tmp_path, record, fault):
    results = load_results([write(tmp_path / "x.json", retrieval(), record)])
    assert len(results.of("retrieval")) == 1
    (problem,) = results.problems
    assert "record 1 of" in problem
    assert fault in problem


@pytest.mark.parametrize("content", ["[" * 9999, '{"format": 1, "results": [NaN]}', '{"format": 1, "format": 1}', "7"])
def test_files_of_other_forms_are_problems(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    (problem,) = load_results([path]).problems
    assert problem.startswith(f"no result file: {path}")


def test_names_of_any_length_and_letters_make_files_of_their_own(tmp_path):
    """Two long names that begin alike, and two that differ in letters which no file's name keeps."""
    long = "t" * 240
    records = [
        record
        for task, fingerprint in ((f"{long}a", "ab"), (f"{long}b", "ab"), ("x/y", "ab"), ("x y", "ab"))
        for record in (
            retrieval("a / truncate", 0.5, task=task, data_fingerprint=fingerprint),
            retrieval("b / truncate", 0.6, task=task, data_fingerprint=fingerprint, seconds_per_document=0.1),
        )
    ]
    results = write(tmp_path / "x.json", *records)
    outcome = report(results, "--output", tmp_path / "r.html", "--output", tmp_path / "r.md")
    assert outcome.exit_code == 0, outcome.stderr
    named = re.findall(r"\]\(r-plots/([^)]+)\)", (tmp_path / "r.md").read_text(encoding="utf-8"))
    assert len(named) == len(set(named)) == 4
    assert sorted(path.name for path in (tmp_path / "r-plots").iterdir()) == sorted(named)
    ids = [attrs["id"] for _, attrs in Page((tmp_path / "r.html").read_text(encoding="utf-8")).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_nothing_is_written_before_all_is_rendered(tmp_path, monkeypatch):
    render = pages_module.render

    def fail_on_markdown(sections, title, suffix, plots):
        if suffix == ".md":
            raise ValueError("no Markdown today")
        return render(sections, title, suffix, plots)

    monkeypatch.setattr(pages_module, "render", fail_on_markdown)
    results = write(tmp_path / "x.json", bm25(), retrieval())
    assert report(results, "--output", tmp_path / "r.html", "--output", tmp_path / "r.md").exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


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
        assert sorted(record["ndcg_at_10"] for record in results.of("retrieval")) == [0.4, 0.9]
        (note,) = results.notes
        assert note.startswith("retrieval, bm25, qmsum, test: measured twice")
        assert note.endswith("new.json wins")


def test_a_row_that_the_paper_does_not_have_is_noted(tmp_path):
    results = load_results([write(tmp_path / "x.json", retrieval(paper_row="M2-BERT-32K"))])
    assert len(results.of("retrieval")) == 1
    assert results.notes == [
        "retrieval, encoder / truncate, qmsum, test: the paper has no row 'M2-BERT-32K'; did you mean 'M2-BERT-32k'?"
    ]


def test_a_name_that_several_models_share_is_noted(tmp_path):
    records = [retrieval(), retrieval(task="gov_report"), bm25(), bm25(task="gov_report")]
    assert load_results([write(tmp_path / "one.json", *records)]).notes == []
    records[1]["model_fingerprint"] = "7f" * 32
    (note,) = load_results([write(tmp_path / "two.json", *records)]).notes
    assert note.startswith("encoder / truncate: its records are of 2 models")
    assert "5e5e5e5e, 7f7f7f7f" in note


def test_labels_move_no_further_than_they_must():
    assert spread([0.5], 0.1) == [0.5]
    assert spread([0.2, 0.5, 0.8], 0.1) == pytest.approx([0.2, 0.5, 0.8])
    assert spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert spread([0.98, 0.99, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])


def test_the_front_holds_what_nothing_cheaper_beats():
    points = [
        CostPoint(name, cost, score, "") for name, cost, score in [("a", 1, 5), ("b", 2, 4), ("c", 3, 6), ("d", 3, 7)]
    ]
    assert [point.system for point in pareto_front(points)] == ["a", "d"]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("gov_report", "gov_report"),
        ("a | b\nc", "a \\| b c"),
        ("*x* `y` _z_", "\\*x\\* \\`y\\` \\_z\\_"),
        ("# no heading", "\\# no heading"),
        ("<2k & $5", "\\<2k \\& \\$5"),
    ],
)
def test_markdown_shows_texts_as_they_are(text, escaped):
    assert escape_markdown(text) == escaped
