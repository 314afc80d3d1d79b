"""Benchmarks of mteb, analyses and the paper's own arithmetic in the report."""

from fabricated_records import (
    bm25,
    clusters,
    efficiency,
    lengths,
    mteb,
    needle,
    retrieval,
    spans,
)
from report_reading import sections_of, table_of

from m2bert.eval.report import paper
from m2bert.eval.report.blocks import MINUS, Errata, Plot

OTHER_DATA = "cd" * 32


def test_mteb_scores_use_the_papers_measure_and_average_the_same_tasks():
    sections = sections_of(
        mteb(value=0.8),
        mteb("EmotionClassification", 0.44),
        mteb("STS12", 0.6, metric="cosine_spearman", other_scores={"cosine_pearson": 0.7}),
        mteb("LEMBPasskeyRetrieval", 0.3, split="test_4096", metric="ndcg_at_1"),
    )
    rows = table_of(sections["MTEB classification (Table 18)"])
    assert rows["Banking77Classification"]["difference"].text == "+1.8"
    average = rows["average over 2 of 12 tasks"]
    assert [average[name].text for name in ("ours", "M2-BERT-128", "SentenceBERT")] == ["62.0", "60.5", "62.8"]
    pairs = sections_of(mteb("TwitterURLCorpus", 0.7, metric="max_ap", other_scores={"cosine_accuracy": 0.88}))
    pair = table_of(pairs["MTEB pair classification (Table 20)"])["TwitterURLCorpus"]
    assert [pair[name].text for name in ("metric", "ours", "M2-BERT-128")] == ["cosine_accuracy", "88.0", "88.1"]
    sts = table_of(sections["MTEB semantic textual similarity (Table 22)"])["STS12"]
    assert [sts[name].text for name in ("metric", "ours", "M2-BERT-128")] == ["cosine_pearson", "70.0", "79.7"]
    assert "LEMBPasskeyRetrieval, test_4096" in table_of(sections["Other tasks of mteb"])
    assert not any(title.startswith("Averages of complete groups") for title in sections)


def test_a_complete_group_of_mteb_is_averaged():
    tasks = paper.columns("20")
    section = sections_of(*(mteb(task, 0.9) for task in tasks))["Averages of complete groups (Table 9)"]
    rows = table_of(section)
    assert rows["encoder / truncate"]["MTEB pair classification (Table 20)"].text == "90.0"
    assert rows["M2-BERT-128 (paper)"]["MTEB pair classification (Table 20)"].text == "90.3"


def test_of_msmarco_the_split_test_is_compared_and_another_is_named():
    dev, test = (retrieval(score=score, task="MSMARCO", split=split) for score, split in ((0.4, "dev"), (0.6, "test")))
    for records in ((dev, test), (test, dev)):
        rows = table_of(sections_of(*records)["BEIR (Table 14)"])
        assert rows["MSMARCO"]["difference"].text == "+0.2"
        assert "MSMARCO, dev" not in rows
    assert table_of(sections_of(dev)["BEIR (Table 14)"])["MSMARCO, dev"]["ours"].text == "40.0"


def test_retrieval_records_of_beir_and_mldr_reach_the_papers_tables():
    rerank = {"method": "rerank", "depth": 100}
    sections = sections_of(
        retrieval("a / truncate", 0.25, task="NFCorpus"),
        retrieval("a / truncate", 0.5, task="MultiLongDocRetrieval", paper_row="M2-BERT-32k"),
        retrieval("a + bm25", 0.8, task="MultiLongDocRetrieval", paper_row="M2-BERT-32k", hybrid=rerank),
    )
    assert table_of(sections["BEIR (Table 14)"])["NFCorpus"]["difference"].text == "+0.4"
    rows = table_of(sections["MLDR (Table 10)"])
    assert rows["a / truncate"]["difference"].text == f"{MINUS}2.3"
    assert rows["a + bm25"]["difference"].text == f"{MINUS}0.9"


def test_needle_averages_use_the_papers_same_places():
    section = sections_of(needle(places=[0, 39], paper_row="M2-BERT-32k"))["Needle in a haystack (Table 17, Figure 2)"]
    rows = table_of(section)
    assert rows["M2-BERT-32k (paper)"]["average"].text == "41.4"  # of 82.0 and 0.8
    assert rows["encoder / truncate"]["places"].text == "2 of 40"
    (plot,) = (block for block in section.blocks if isinstance(block, Plot))
    assert "stroke-dasharray" in plot.svg


def test_another_haystack_is_not_compared_with_the_papers():
    section = sections_of(needle(places=range(10), passages=10))["Needle in a haystack (Table 17, Figure 2)"]
    assert list(table_of(section)) == ["encoder / truncate"]


def test_lengths_stand_beside_the_papers_counts():
    section = sections_of(lengths(), lengths("pydocs", data_fingerprint=OTHER_DATA))[
        "Lengths (Table 11, Figures 5 and 6)"
    ]
    table = section.blocks[0]
    qmsum, pydocs = ([cell.text for cell in cells] for cells in table.groups[0].rows)
    assert qmsum[1:9] == ["272", "272", "35", "35", "433", "430", "58,000", "58,129"]
    assert pydocs[2] == "–"


def test_spans_clusters_and_efficiency_have_their_numbers():
    sections = sections_of(spans(), clusters(), efficiency())
    answers = table_of(sections["Where answers begin (Table 12)"])
    assert answers["pydocs, test (cdcdcdcd)"]["in quarter 4"].text.startswith("40")
    assert answers["multifieldqa (paper)"]["2nd quartile"].text == "2,610"
    assert table_of(sections["Clusters (Figure 3)"])["encoder / truncate"]["named rightly"].text.startswith("93")
    times = table_of(sections["Efficiency (Table 5)"])
    assert times["encoder / truncate"]["2,048 tokens"].text == "0.16 + 0.00205"
    (errata,) = (block for block in sections["Efficiency (Table 5)"].blocks if isinstance(block, Errata))
    assert any("0.0071" in text for text in errata.items)


def test_tables_without_results_are_named():
    text = sections_of(bm25())["Tables of the paper not measured here"].blocks[0].text
    assert "18 (MTEB classification)" in text
    assert "15 (" not in text


def test_the_papers_columns_average_to_what_the_errata_say():
    assert round(paper.mean("15", "M2-BERT-8k", paper.columns("15")), 1) == 88.9
    assert round(paper.mean("14", "M2-BERT-128", paper.columns("14")), 1) == 38.7
    assert round(paper.mean("23", "M2-BERT-8k", paper.columns("23")), 1) == 87.9
    assert paper.value("15", "BM25", "qmsum") == 78.7
    transformers = [name for name in paper.values("15") if name != "BM25" and not name.startswith("M2-BERT")]
    ahead = [
        task
        for task, score in paper.values("15")["M2-BERT-32k"].items()
        if score > max(paper.value("15", name, task) for name in transformers)
    ]
    assert len(ahead) == 9
