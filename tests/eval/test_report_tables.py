import pytest
from fabricated_records import (
    OVERLAP,
    bm25,
    by_length,
    example,
    retrieval,
)
from report_reading import groups_of, sections_of, table_of

from m2bert.eval.report.blocks import MINUS, Errata, Table

OTHER_DATA = "cd" * 32


def test_a_score_stands_beside_the_papers_with_difference_and_interval():
    section = sections_of(bm25(0.91), retrieval(paper_row="E5-Mistral", score=0.657))["qmsum, test"]
    rows = table_of(section)
    assert rows["bm25"]["nDCG@10"].text == "91.0"
    assert rows["bm25"]["95 % interval"].text == "86.0 to 96.0"
    assert rows["bm25"]["paper"].text == "78.7"
    assert rows["bm25"]["difference"].text == "+12.3"
    assert rows["bm25"]["difference"].strong  # 78.7 is below the interval
    assert rows["encoder / truncate"]["difference"].text == f"{MINUS}0.2"
    assert not rows["encoder / truncate"]["difference"].strong
    assert rows["M2-BERT-32k (paper)"]["nDCG@10"].text == "93.7"
    assert rows["M2-BERT-32k (paper)"]["nDCG@10"].paper


@pytest.mark.parametrize(
    "fields", [{"split": "validation"}, {"distractors": {"count": 2000}}, {"task": "qmsum +2000"}, {"task": "pydocs"}]
)
def test_other_data_than_the_papers_get_no_difference(fields):
    sections = sections_of(bm25(**fields))
    (section,) = (section for section in sections.values() if section.level == 3)
    assert "paper" not in table_of(section)["bm25"]
    assert not any("paper" in name for name in table_of(section))


def test_systems_are_ranked_within_their_groups_only():
    weighted = {"with": "bm25", "method": "weighted", "weight": 0.35}
    section = sections_of(
        retrieval("a / truncate", 0.5),
        retrieval("b / truncate", 0.6),
        retrieval("tuned / truncate", 0.9, claim="fine-tuned"),
        retrieval("a / best-chunk", 0.7, vectors="several"),
        retrieval("a / truncate + bm25 (weighted)", 0.95, hybrid=weighted),
        retrieval("odd / truncate", 0.99, claim="not stated"),
        bm25(0.2),
    )["qmsum, test"]
    ours = {title: [name for name in names if "(paper)" not in name] for title, names in groups_of(section).items()}
    assert ours == {
        "Lexical": ["bm25"],
        "One vector a document, zero-shot": ["b / truncate", "a / truncate"],
        "One vector a document, fine-tuned on the task": ["tuned / truncate"],
        "Several vectors a document, zero-shot": ["a / best-chunk"],
        "Hybrid with BM25, zero-shot": ["a / truncate + bm25 (weighted)"],
        "One vector a document, training not stated": ["odd / truncate"],
    }


def test_pairs_are_marked_where_the_interval_excludes_zero():
    first = retrieval("a / truncate", 0.6)
    close = retrieval("b / truncate", 0.59)
    close["query_scores"] = {
        qid: score + (0.1 if index % 2 else -0.12) for index, (qid, score) in enumerate(first["query_scores"].items())
    }
    rows = table_of(sections_of(bm25(0.8), first, close)["qmsum, test"], index=1)
    assert rows["a / truncate"]["minus bm25"].text == f"{MINUS}20.0"
    assert rows["a / truncate"]["minus bm25"].strong
    assert rows["a / truncate"]["minus the best of its group"].text == "–"
    assert rows["b / truncate"]["minus the best of its group"].text == f"{MINUS}1.0"
    assert not rows["b / truncate"]["minus the best of its group"].strong


def test_data_that_differ_are_never_compared():
    sections = sections_of(bm25(0.9), retrieval("a / truncate", 0.5, data_fingerprint=OTHER_DATA))
    first, second = sections["qmsum, test, data abababab"], sections["qmsum, test, data cdcdcdcd"]
    assert "a / truncate" not in table_of(first)
    assert "bm25" not in table_of(second)
    for section in (first, second):
        assert len([block for block in section.blocks if isinstance(block, Table)]) == 1  # no table of pairs
    overview = table_of(sections["LoCoV1 (Tables 3 and 15)"])
    assert "average over 2 of 12 tasks" not in overview["bm25"]
    assert overview["bm25"]["qmsum (cdcdcdcd)"].text == "–"


def test_averages_are_over_tasks_that_all_systems_share():
    records = [
        bm25(0.91),
        bm25(0.98, task="gov_report"),
        bm25(0.3, task="stackoverflow"),
        retrieval("a / truncate", 0.5),
        retrieval("a / truncate", 0.8, task="gov_report"),
    ]
    section = sections_of(*records)["LoCoV1 (Tables 3 and 15)"]
    rows = table_of(section)
    column = "average over 2 of 12 tasks"
    assert list(rows["bm25"]) == [column, "stackoverflow", "qmsum", "gov_report", "system"]
    assert rows["bm25"][column].text == "94.5"
    assert rows["a / truncate"][column].text == "65.0"
    assert rows["a / truncate"]["stackoverflow"].text == "–"
    assert rows["BM25 (paper)"][column].text == "88.7"  # of 98.7 and 78.7, not the 81.5 that the paper prints
    (errata,) = (block for block in section.blocks if isinstance(block, Errata))
    assert any("88.9" in text for text in errata.items)
    assert any("25.5" in text for text in errata.items)


def test_a_row_with_a_task_that_was_trained_on_is_not_among_the_zero_shot_ones():
    section = sections_of(
        retrieval("a / truncate", 0.5),
        retrieval("a / truncate", 0.8, task="gov_report"),
        retrieval("b / truncate", 0.9, claim="fine-tuned"),
        retrieval("b / truncate", 0.8, task="gov_report"),
        retrieval("c / truncate", 0.4),
        retrieval("c / truncate", 0.4, task="gov_report", claim="not stated"),
    )["LoCoV1 (Tables 3 and 15)"]
    ours = {title: [name for name in names if "(paper)" not in name] for title, names in groups_of(section).items()}
    assert ours["One vector a document, zero-shot"] == ["a / truncate"]
    assert ours["One vector a document, fine-tuned on the task"] == ["b / truncate"]
    assert ours["One vector a document, training not stated"] == ["c / truncate"]


def test_what_few_documents_make_meaningless_is_said():
    rerank = retrieval(hybrid={"method": "rerank", "depth": 100})
    (caption,) = {block.caption for block in sections_of(rerank)["qmsum, test"].blocks if isinstance(block, Table)}
    assert "recall@100 says nothing" in caption
    assert "gives the model's own ranking" in caption
    rerank["counts"] = rerank["counts"] | {"documents": 101}
    (caption,) = {block.caption for block in sections_of(rerank)["qmsum, test"].blocks if isinstance(block, Table)}
    assert "says nothing" not in caption
    assert "own ranking" not in caption


def test_one_task_has_no_average():
    section = sections_of(bm25())["LoCoV1 (Tables 3 and 15)"]
    assert not [block for block in section.blocks if isinstance(block, Table)]
    assert "1 of 12 tasks" in section.blocks[0].text


def test_locov0_is_read_from_its_commits():
    revision = "db3f60f" + "0" * 33 + ",fde163bddbb5f3c2ad19769e18a570843da36ec3"
    sections = sections_of(retrieval(score=0.4, revision=revision, paper_row="E5-Mistral"))
    assert "LoCoV1 (Tables 3 and 15)" not in sections
    assert "LoCoV0 (Table 23)" in sections
    assert table_of(sections["qmsum, test"])["encoder / truncate"]["paper"].text == "46.8"


def test_what_training_had_seen_stands_beside_the_score():
    sections = sections_of(
        bm25(), retrieval("a / truncate", claim="fine-tuned", overlap=[OVERLAP]), retrieval("b / truncate")
    )
    rows = table_of(sections["qmsum, test"])
    column = "overlap: documents, queries"
    assert [rows[name][column].text for name in ("bm25", "a / truncate", "b / truncate")] == [
        "–",
        "3/35, 4/272",
        "not checked",
    ]
    assert table_of(sections["Contamination"])["qmsum, test"]["near"].text == "2"


def test_rows_lead_to_their_sources():
    revision = "c0" * 20
    sections = sections_of(bm25(), retrieval(revision=revision, trained_on=["qmsum, train"]))
    number = table_of(sections["qmsum, test"])["encoder / truncate"]["system"].source
    source = table_of(sections["Sources"])[str(number)]
    assert source["No."].anchor == f"source-{number}"
    texts = [source[name].text for name in ("system", "policy", "model", "trained on", "data", "date")]
    assert texts == [
        "encoder / truncate",
        "truncate",
        "5e5e5e5e",
        "qmsum, train",
        "qmsum, test (c0c0c0c0)",
        "2026-11-20",
    ]


def test_a_hybrids_weight_is_among_its_sources():
    hybrid = {"method": "weighted", "weight": 0.35, "development_split": "validation", "development_ndcg_at_10": 0.9}
    source = table_of(sections_of(retrieval(hybrid=hybrid))["Sources"])["1"]
    assert source["policy"].text == "truncate; weight 0.35 of the model, chosen by nDCG@10 90.0 on validation"


def test_scores_by_length_come_with_counts_and_without_differences():
    section = sections_of(retrieval(by_length=by_length(None, 0.7, 0.6, 0.5)))[
        "By length of the answer's document (Table 24)"
    ]
    rows = table_of(section)["encoder / truncate"]
    assert rows["<2k (0 queries)"].text == "–"
    assert rows["8k-32k (10 queries)"].text == "60.0 (10.0 to 90.0)"
    assert table_of(section, index=1)["M2-BERT-32k (paper)"][">32k"].text == "86.1"


def test_successes_and_failures_keep_their_texts():
    record = retrieval(failures=[example("lost?", rank=None)], successes=[example()])
    section = sections_of(record)["Successes and failures (Table 25)"]
    rows = table_of(section)
    assert rows["lost?"]["rank"].text == "not found"
    assert rows["lost?"]["ranked first instead, begins"].text == "Another meeting."
    assert rows["what was decided?"]["ranked first instead, begins"].text == "–"


def test_texts_are_those_of_the_best_system_of_each_group():
    worse = retrieval("b / truncate", 0.3, successes=[example("of the worse")])
    better = retrieval("a / truncate", 0.6, successes=[example("of the better")])
    section = sections_of(worse, better)["Successes and failures (Table 25)"]
    assert [list(table_of(section, index)) for index, _ in enumerate(section.blocks[1:])] == [["of the better"]]
