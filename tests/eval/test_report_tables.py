"""What the sections of a report say, as Markdown; italics are the paper's numbers, bold sets a difference apart."""

import re

import fabricated_records as made
import pytest

from m2bert.eval.report.page import build_sections, markdown_text
from m2bert.eval.report.tables import MINUS, NO_BREAK_SPACE, paper_columns, paper_mean, paper_value, paper_values

OTHER_DATA = "cd" * 32


def sections_of(*records) -> dict[str, str]:
    """{title: Markdown below it} of a report on these records."""
    by_kind = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    text = markdown_text(build_sections(by_kind, [], []), "plots")
    _, *parts = re.split(r"^###? ", text, flags=re.MULTILINE)
    return {plain(part.partition("\n")[0]): part.partition("\n")[2] for part in parts if part}


def plain(cell: str) -> str:
    """A cell without emphasis, backslashes and its link to a source."""
    cell = re.sub(r" \[\d+\]\(#sources\)$", "", cell.strip())
    return re.sub(r"(?<!\\)\*+|\\(?=\W)", "", cell)


def rows_of(section: str, index=0) -> list[list[str]]:
    """Cells of a section's table, the header first."""
    tables = re.findall(r"(?:^\|.*\n?)+", section, flags=re.MULTILINE)
    lines = tables[index].strip().split("\n")
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in [lines[0], *lines[2:]]]


def table_of(section: str, index=0) -> dict[str, dict[str, str]]:
    """{first cell: {column: cell}} of a section's table; a column that occurs twice keeps its first."""
    header, *rows = rows_of(section, index)
    names = [plain(name) for name in header]
    return {plain(cells[0]): dict(reversed(list(zip(names, cells, strict=True)))) for cells in rows}


def groups_of(section: str) -> dict[str, list[str]]:
    """{title of a group: our systems in it} of a section's first table."""
    groups = {}
    for first, *others in rows_of(section)[1:]:
        if first.startswith("**") and not any(others):
            title = plain(first)
        elif "(paper)" not in first:
            groups.setdefault(title, []).append(plain(first))
    return groups


def test_a_score_stands_beside_the_papers_with_difference_and_interval():
    rows = table_of(sections_of(made.bm25(0.91), made.retrieval(paper_row="E5-Mistral", score=0.657))["qmsum, test"])
    names = ["nDCG@10", "95 % interval", "paper", "difference"]
    assert [rows["bm25"][name] for name in names] == ["91.0", "86.0 to 96.0", "*78.7*", "**+12.3**"]
    assert rows["encoder / truncate"]["difference"] == f"{MINUS}0.2"  # within the interval
    assert rows["M2-BERT-32k (paper)"]["nDCG@10"] == "*93.7*"


@pytest.mark.parametrize(
    "fields", [{"split": "validation"}, {"distractors": {"count": 2000}}, {"task": "qmsum +2000"}, {"task": "pydocs"}]
)
def test_other_data_than_the_papers_get_no_difference(fields):
    sections = sections_of(made.bm25(**fields))
    (section,) = (text for title, text in sections.items() if re.match("(qmsum|pydocs)", title))
    assert "paper" not in table_of(section)["bm25"]
    assert not any("paper" in name for name in table_of(section))


def test_systems_are_ranked_within_their_groups_only():
    weighted = {"with": "bm25", "method": "weighted", "weight": 0.35}
    sections = sections_of(
        made.retrieval("a / truncate", 0.5),
        made.retrieval("b / truncate", 0.6),
        made.retrieval("tuned / truncate", 0.9, claim="fine-tuned"),
        made.retrieval("tuned / truncate", 0.8, task="gov_report"),
        made.retrieval("a / best-chunk", 0.7, vectors="several"),
        made.retrieval("a / truncate + bm25 (weighted)", 0.95, hybrid=weighted),
        made.retrieval("odd / truncate", 0.99, claim="not stated"),
        made.retrieval("odd / truncate", 0.9, task="gov_report"),
        made.bm25(0.2),
    )
    groups = {
        "Lexical": ["bm25"],
        "One vector a document, zero-shot": ["b / truncate", "a / truncate"],
        "One vector a document, fine-tuned on the task": ["tuned / truncate"],
        "Several vectors a document, zero-shot": ["a / best-chunk"],
        "Hybrid with BM25, zero-shot": ["a / truncate + bm25 (weighted)"],
        "One vector a document, training not stated": ["odd / truncate"],
    }
    assert groups_of(sections["qmsum, test"]) == groups
    assert groups_of(sections["LoCoV1 (Tables 3 and 15)"]) == groups  # what is fine-tuned on one task, is so there


def test_pairs_are_marked_where_the_interval_excludes_zero():
    first, close = made.retrieval("a / truncate", 0.6), made.retrieval("b / truncate", 0.59)
    close["query_scores"] = {
        qid: score + (0.1 if index % 2 else -0.12) for index, (qid, score) in enumerate(first["query_scores"].items())
    }
    rows = table_of(sections_of(made.bm25(0.8), first, close)["qmsum, test"], index=1)
    assert rows["a / truncate"]["minus bm25"] == f"**{MINUS}20.0**"
    assert rows["a / truncate"]["minus the best of its group"] == "–"
    assert rows["b / truncate"]["minus the best of its group"] == f"{MINUS}1.0"


def test_data_that_differ_are_never_compared():
    sections = sections_of(made.bm25(0.9), made.retrieval("a / truncate", 0.5, data_fingerprint=OTHER_DATA))
    first, second = sections["qmsum, test, data abababab"], sections["qmsum, test, data cdcdcdcd"]
    assert "a / truncate" not in table_of(first)
    assert "bm25" not in table_of(second)
    assert "paired bootstrap" not in first + second
    overview = table_of(sections["LoCoV1 (Tables 3 and 15)"])
    assert "average over 2 of 12 tasks" not in overview["bm25"]
    assert overview["bm25"]["qmsum (cdcdcdcd)"] == "–"


def test_averages_are_over_tasks_that_all_systems_share():
    section = sections_of(
        made.bm25(0.91),
        made.bm25(0.98, task="gov_report"),
        made.bm25(0.3, task="stackoverflow"),
        made.retrieval("a / truncate", 0.5),
        made.retrieval("a / truncate", 0.8, task="gov_report"),
    )["LoCoV1 (Tables 3 and 15)"]
    column = "average over 2 of 12 tasks"
    assert rows_of(section)[0] == ["system", "gov_report", "qmsum", "stackoverflow", column]
    rows = table_of(section)
    assert (rows["bm25"][column], rows["a / truncate"][column]) == ("94.5", "65.0")
    assert rows["a / truncate"]["stackoverflow"] == "–"
    assert rows["BM25 (paper)"][column] == "*88.7*"  # of 98.7 and 78.7, not the 81.5 that the paper prints
    assert "> Errors in the paper that matter here" in section
    assert "88.9" in section


@pytest.mark.parametrize("documents", [100, 101])
def test_what_few_documents_make_meaningless_is_said(documents):
    rerank = made.retrieval(hybrid={"method": "rerank", "depth": 100}, counts={"queries": 40, "documents": documents})
    text = sections_of(rerank)["qmsum, test"]
    assert ("recall@100 says nothing" in text) == ("gives the model's own ranking" in text) == (documents == 100)


def test_rows_lead_to_their_sources():
    hybrid = {"method": "weighted", "weight": 0.35, "development_split": "validation", "development_ndcg_at_10": 0.9}
    sections = sections_of(
        made.bm25(), made.retrieval(revision="c0" * 20, trained_on=["qmsum, train"]), made.retrieval("h", hybrid=hybrid)
    )
    cell = table_of(sections["qmsum, test"])["encoder / truncate"]["system"]
    sources = table_of(sections["Sources"])
    source = sources[re.fullmatch(r"encoder / truncate \[(\d+)\]\(#sources\)", cell)[1]]
    assert list(source.values())[::-1] == [
        "2", "encoder / truncate", "truncate", "5e5e5e5e", "qmsum, train", "qmsum, test (c0c0c0c0)", "A",
        "cpu, float32", "2026-11-20",
    ]  # fmt: skip
    assert sources["3"]["policy"] == "truncate; weight 0.35 of the model, chosen by nDCG@10 90.0 on validation"
    assert "Versions A: python 3.11.7, torch" in sections["Sources"]


def test_successes_and_failures_are_those_of_the_best_system_of_each_group():
    worse = made.retrieval("b / truncate", 0.3, successes=[made.example("of the worse")])
    better = made.retrieval(
        "a / truncate", 0.6, successes=[made.example()], failures=[made.example("lost?", rank=None)]
    )
    section = sections_of(worse, better)["Successes and failures (Table 25)"]
    assert "of the worse" not in section
    rows = table_of(section)
    assert (rows["lost?"]["rank"], rows["lost?"]["ranked first instead, begins"]) == ("not found", "Another meeting.")
    assert rows["what was decided?"]["ranked first instead, begins"] == "–"


LOCOV0 = "db3f60f" + "0" * 33 + ",fde163bddbb5f3c2ad19769e18a570843da36ec3"
MSMARCO_DEV, MSMARCO_TEST = (
    made.retrieval(score=score, task="MSMARCO", split=split) for score, split in ((0.4, "dev"), (0.6, "test"))
)
BY_LENGTH = made.by_length(None, 0.7, 0.6, 0.5)
QUARTER = {"quarter": 4, "queries": 7, "ndcg_at_10": 0.25, "interval_95": None}
MLDR = {"task": "MultiLongDocRetrieval", "paper_row": "M2-BERT-32k"}
RECORDS = {
    "locov0": [made.retrieval(score=0.4, revision=LOCOV0, paper_row="E5-Mistral")],
    "trained": [made.bm25(), made.retrieval("a", claim="fine-tuned", overlap=[made.OVERLAP]), made.retrieval("b")],
    "parts": [
        made.retrieval(by_length=BY_LENGTH, by_quarter=[QUARTER]),
        made.retrieval("b", 0.5, by_length=BY_LENGTH | {"rows": BY_LENGTH["rows"][:1]}),
    ],
    "mteb": [
        made.mteb(value=0.8),
        made.mteb("EmotionClassification", 0.44),
        made.mteb("STS12", 0.6, metric="cosine_spearman", other_scores={"cosine_pearson": 0.7}),
        made.mteb("LEMBPasskeyRetrieval", 0.3, split="test_4096", metric="ndcg_at_1"),
    ],
    "complete": [made.mteb(task, 0.9) for task in paper_columns("20")],
    "both": [MSMARCO_DEV, MSMARCO_TEST],
    "turned": [MSMARCO_TEST, MSMARCO_DEV],
    "dev": [MSMARCO_DEV, made.retrieval(score=0.25, task="NFCorpus")],
    "mldr": [
        made.retrieval("a", 0.5, **MLDR),
        made.retrieval("h", 0.8, hybrid={"method": "rerank", "depth": 100}, **MLDR),
    ],
    "needle": [made.needle(places=[0, 39], paper_row="M2-BERT-32k")],
    "others": [
        *(made.lengths(), made.lengths("pydocs", data_fingerprint=OTHER_DATA)),
        *(made.spans(), made.clusters(), made.efficiency()),
    ],
}
PERCENT = f"{NO_BREAK_SPACE}%"


@pytest.mark.parametrize(
    ("records", "title", "row", "column", "cell"),
    [
        ("locov0", "qmsum, test", "encoder / truncate", "paper", "*46.8*"),
        ("trained", "qmsum, test", "a", "overlap: documents, queries", "3/35, 4/272"),
        ("trained", "qmsum, test", "b", "overlap: documents, queries", "not checked"),
        ("trained", "Contamination", "qmsum, test", "near", "2"),
        ("parts", "By length", "encoder / truncate", "<2k (0 queries)", "–"),
        ("parts", "By length", "encoder / truncate", "8k-32k (10 queries)", "60.0 (10.0 to 90.0)"),
        ("parts", "By length", "M2-BERT-32k (paper)", ">32k", "*86.1*"),
        ("parts", "By place", "encoder / truncate", "quarter 4 (7 queries)", "25.0 (–)"),
        ("mteb", "MTEB classification", "Banking77Classification", "difference", "+1.8"),
        ("mteb", "MTEB classification", "average over 2 of 12 tasks", "ours", "62.0"),
        ("mteb", "MTEB classification", "average over 2 of 12 tasks", "SentenceBERT", "*62.8*"),
        ("mteb", "MTEB semantic textual similarity", "STS12", "metric", "cosine_pearson"),  # the paper's measure
        ("mteb", "Other tasks of mteb", "LEMBPasskeyRetrieval, test_4096", "points", "30.0"),
        ("complete", "Averages", "encoder / truncate", "MTEB pair classification (Table 20)", "90.0"),
        ("both", "BEIR", "MSMARCO", "difference", "+0.2"),
        ("turned", "BEIR", "MSMARCO", "difference", "+0.2"),
        ("dev", "BEIR", "MSMARCO, dev", "ours", "40.0"),
        ("mldr", "MLDR (Table 10)", "h", "difference", f"{MINUS}0.9"),
        ("needle", "Needle", "encoder / truncate", "places", "2 of 40"),
        ("needle", "Needle", "M2-BERT-32k (paper)", "average", "*41.4*"),  # of 82.0 and 0.8
        ("others", "Lengths", "qmsum, test (abababab)", "paper", "*272*"),
        ("others", "Lengths", "pydocs, test (cdcdcdcd)", "paper", "*–*"),
        ("others", "Where answers begin", "pydocs, test (cdcdcdcd)", "in quarter 4", f"40{PERCENT}"),
        ("others", "Where answers begin", "multifieldqa (paper)", "2nd quartile", "*2,610*"),
        ("others", "Clusters", "encoder / truncate", "named rightly", f"93{PERCENT}"),
        ("others", "Efficiency", "encoder / truncate", "2,048 tokens", "0.16 + 0.00205"),
    ],
)
def test_tables_hold_ours_and_the_papers_numbers(sections, records, title, row, column, cell):
    section = next(text for name, text in sections[records].items() if name.startswith(title))
    tables = [table_of(section, index) for index in range(section.count("\n| -"))]
    assert next(table[row][column] for table in tables if column in table.get(row, {})) == cell


@pytest.fixture(scope="module")
def sections():
    return {name: sections_of(*records) for name, records in RECORDS.items()}


def test_what_belongs_to_no_table_of_the_paper_is_in_none():
    others = made.mteb(), made.needle(places=range(10), passages=10)
    sections = sections_of(*RECORDS["locov0"], *RECORDS["both"], *others)
    assert "LoCoV1 (Tables 3 and 15)" not in sections
    assert not any(title.startswith("Averages of complete groups") for title in sections)
    assert "MSMARCO, dev" not in table_of(sections["BEIR (Table 14)"])
    assert list(table_of(sections["Needle in a haystack (Table 17, Figure 2)"])) == ["encoder / truncate"]


def test_one_task_has_no_average_and_tables_without_results_are_named():
    sections = sections_of(made.bm25())
    overview = sections["LoCoV1 (Tables 3 and 15)"]
    assert overview.strip().startswith("1 of 12 tasks")
    assert "|" not in overview
    text = sections["Tables of the paper not measured here"]
    assert "18 (MTEB classification)" in text
    assert "15 (" not in text


def test_the_papers_columns_average_to_what_the_errata_say():
    means = [paper_mean(table, row, paper_columns(table)) for table, row in
             (("15", "M2-BERT-8k"), ("14", "M2-BERT-128"), ("23", "M2-BERT-8k"))]  # fmt: skip
    assert [round(mean, 1) for mean in means] == [88.9, 38.7, 87.9]
    assert paper_value("15", "BM25", "qmsum") == 78.7
    transformers = [name for name in paper_values("15") if name != "BM25" and not name.startswith("M2-BERT")]
    best = {task: max(paper_value("15", name, task) for name in transformers) for task in paper_columns("15")}
    assert sum(paper_value("15", "M2-BERT-32k", task) > score for task, score in best.items()) == 9


def test_run_files_are_a_group_of_their_own():
    """Nobody knows their pool, or how they treat documents."""
    unknown = dict.fromkeys(("policy", "vectors", "claim"), "not stated")
    record = made.retrieval("theirs", counts={"queries": 40, "documents": None}, **unknown)
    section = sections_of(record, made.bm25())["qmsum, test"]
    assert groups_of(section) == {"Lexical": ["bm25"], "Run files": ["theirs"]}
    assert "40 queries. Scores" in sections_of(record)["qmsum, test"]
