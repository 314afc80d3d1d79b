"""Runs and judgments in TREC's formats are read as trec_eval reads them."""

import gzip
import math

import numpy as np
import pytest
import pytrec_eval

from m2bert.eval.runs.trec import read_qrels, read_run, write_run
from m2bert.eval.search import score_metrics, trec_order


def random_run(seed: int, queries: int) -> tuple[dict, dict]:
    """Return a run and judgments with few different scores, so that ties decide, grades from 0 to 3."""
    generator = np.random.default_rng(seed)
    run, qrels = {}, {}
    for number in range(queries):
        pids = [f"d{pid}" for pid in generator.permutation(30)[: generator.integers(1, 30)]]
        scores = generator.choice([0.1, 0.1 + 1e-9, 0.25, -1.0, 3e5, 2.0**-130], len(pids)).tolist()
        judged = [f"d{pid}" for pid in generator.permutation(40)[: generator.integers(1, 12)]]
        run[f"q{number}"] = dict(zip(pids, scores, strict=True))
        qrels[f"q{number}"] = dict(zip(judged, generator.integers(0, 4, len(judged)).tolist(), strict=True))
    return run, qrels


def by_hand(ranking: list[str], judged: dict[str, int], k: int) -> float:
    """Compute nDCG@k with linear gains from its definition; negative grades count as zero."""

    def dcg(grades):
        return sum(max(grade, 0) / math.log2(place + 2) for place, grade in enumerate(grades[:k]))

    best = dcg(sorted(judged.values(), reverse=True))
    return dcg([judged.get(pid, 0) for pid in ranking]) / best if best else 0.0


def test_order_and_ties_are_those_of_trec_eval_in_10_000_random_runs():
    run, qrels = random_run(0, 10_000)
    found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    for qid, judged in qrels.items():
        assert by_hand(trec_order(run[qid]), judged, 10) == pytest.approx(found[qid]["ndcg_cut_10"], abs=1e-9)


def test_a_written_run_scores_as_the_run_in_memory(tmp_path):
    run, qrels = random_run(1, 200)
    write_run(tmp_path / "run.txt", run, "a system")
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100"})
    with open(tmp_path / "run.txt") as file:
        assert evaluator.evaluate(pytrec_eval.parse_run(file)) == evaluator.evaluate(run)
    again = read_run(tmp_path / "run.txt")
    assert {qid: trec_order(scores) for qid, scores in again.items()} == {q: trec_order(s) for q, s in run.items()}


def test_only_the_first_documents_are_kept_with_all_that_tie(tmp_path):
    path = tmp_path / "run"
    path.write_text("".join(f"q Q0 d{i} {i} {score} t\n" for i, score in enumerate([5, 1, 3, 3, 2, 3])))
    assert read_run(path, depth=2) == {"q": {"d0": 5.0, "d2": 3.0, "d3": 3.0, "d5": 3.0}}


@pytest.mark.parametrize("write", ["{}\t{}\t{}\t{}\n", "{}   {} {}\t {}\n", "{} {} {} {}\r\n"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_separators_and_gzip(tmp_path, write, suffix):
    path = tmp_path / f"qrels{suffix}"
    rows = [("q2", 0, "a", 1), ("q1", 0, "b", -1), ("q2", 0, 'é"x', 3)]
    data = "".join(write.format(*row) for row in rows).encode()
    path.write_bytes(gzip.compress(data) if suffix else data)
    assert read_qrels(path) == {"q2": {"a": 1, 'é"x': 3}, "q1": {"b": -1}}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("q Q0 d 1 0.5\n", "columns"),
        ("q Q0 d 1 high t\n", "high"),
        ("q Q0 d 1 nan t\n", "line 1"),
        ("q Q0 d 1 2 t\nq Q0 d 2 1 t\n", "'d' twice"),
        ("", "Empty"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, text, named):
    (tmp_path / "run").write_text(text)
    with pytest.raises(ValueError, match=named):
        read_run(tmp_path / "run")


def test_negative_grades_count_as_not_relevant():
    scores = score_metrics({"q": {"d2": 2.0, "d1": 1.0}}, {"q": {"d1": 2, "d2": -1}})
    assert scores["ndcg_at_10"] == {"q": pytest.approx(1 / math.log2(3))}


@pytest.mark.parametrize("length", [2, 15, 30])
def test_a_cut_or_false_gzip_file_is_named(tmp_path, length):
    path = tmp_path / "system.run.gz"
    path.write_bytes((gzip.compress(b"q Q0 d 1 0.5 t\n" * 9) if length > 2 else b"hi")[:length])
    with pytest.raises(ValueError, match=f"{path} cannot be read"):
        read_run(path)
