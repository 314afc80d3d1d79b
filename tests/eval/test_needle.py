import json
from itertools import pairwise

import numpy as np
import pytest

from m2bert.eval.analyses.needle import (
    SEPARATOR,
    build_haystacks,
    distractor_pool,
    needle_positions,
    passages_of,
    run_needle,
    text_of,
)
from m2bert.eval.tasks.schema import make_task

ABOUT = {"system": "fake / truncate", "encoder": "fake", "policy": "truncate", "model_fingerprint": None}


def short_task(answers=12, others=30):
    """Passages of six words; a query is one word of its passage. The other passages answer nothing."""
    documents = [
        {"pid": f"p{i}", "passage": " ".join(f"word{i}x{j}" for j in range(6))} for i in range(answers + others)
    ]
    queries = [{"qid": f"q{i}", "query": f"word{i}x3", "answer_pids": [f"p{i}"]} for i in range(answers)]
    return make_task("short", "test", queries, documents)


def long_task(positions=(0.1, 0.7), documents=8, words=400):
    """Documents of numbered words, two queries for each of the first three."""
    rows = [{"pid": f"p{i}", "passage": " ".join(f"w{i}n{j}" for j in range(words))} for i in range(documents)]
    queries = [
        {"qid": f"q{i}at{share}", "query": "?", "answer_pids": [f"p{i}"], "position": share}
        for i in range(3)
        for share in positions
    ]
    return make_task("long", "test", queries, rows)


class FirstWords:
    """Ranks documents by how many of the query's words are among their first `words`."""

    def __init__(self, words):
        self.words = words

    def rank(self, task):
        read = {pid: set(text.split()[: self.words]) for pid, text in task.documents.items()}
        return {
            qid: {pid: float(len(set(query.split()) & words)) for pid, words in read.items()}
            for qid, query in task.queries.items()
        }


@pytest.mark.parametrize("task", [short_task(), long_task()], ids=["short", "long"])
def test_only_the_needle_moves_and_is_in_its_own_haystack_only(task):
    haystacks, again, other = (build_haystacks(task, 7, 4, passage_chars=50, seed=seed) for seed in (3, 3, 4))
    assert haystacks.at(2).fingerprint == again.at(2).fingerprint != other.at(2).fingerprint
    assert len(haystacks.needles) == 4
    first = {pid: text.split(SEPARATOR) for pid, text in haystacks.at(0).documents.items()}
    for position in range(7):
        moved = haystacks.at(position)
        for pid, text in moved.documents.items():
            needle, *distractors = first[pid]
            assert text == SEPARATOR.join([*distractors[:position], needle, *distractors[position:]])
        assert moved.queries == haystacks.at(0).queries
    documents = moved.documents
    for qid, needle in haystacks.needles.items():
        words = set(text_of(task, needle).split())
        (own,) = moved.qrels[qid]
        assert [pid for pid, text in documents.items() if words & set(text.split())] == [own]
        assert words <= set(documents[own].split())
        assert not any(passage.pid in task.qrels[qid] for passage in haystacks.distractors[qid])
        assert len(set(haystacks.distractors[qid])) == 6


def test_a_needle_begins_where_the_answer_does_and_is_cut_between_words():
    task = long_task(positions=(0.5,))
    for qid, passage in passages_of(task, passage_chars=60).items():
        document, text = task.documents[passage.pid], text_of(task, passage)
        assert abs(passage.start - len(document) / 2) < 8
        assert 50 < len(text) <= 60
        assert set(text.split()) <= set(document.split())
        assert qid == f"q{passage.pid[1:]}at0.5"
    with pytest.raises(ValueError, match="does not say where in them the answers begin"):
        build_haystacks(long_task(positions=(None,)), passage_chars=50)


def test_needles_do_not_overlap_and_distractors_are_cut_around_the_needles_without_gaps():
    overlapping = build_haystacks(long_task(positions=(0.5, 0.505)), passages=5, passage_chars=100)
    assert sorted(needle.pid for needle in overlapping.needles.values()) == ["p0", "p1", "p2"]
    task = long_task()
    haystacks = build_haystacks(task, passages=5, passage_chars=200)
    everything = [*distractor_pool(task, haystacks.needles, 200), *haystacks.needles.values()]
    for pid in task.documents:
        ordered = sorted(passage for passage in everything if passage.pid == pid)
        assert all(left.end <= right.start for left, right in pairwise(ordered))
        assert all(right.start - left.end <= 100 for left, right in pairwise(ordered))
        assert all(passage.end - passage.start <= 200 for passage in ordered)


def test_the_curve_falls_for_a_reader_of_the_beginning_and_is_level_for_a_reader_of_everything():
    assert (needle_positions(40, 8), needle_positions(40, 1)) == ([0, 6, 11, 17, 22, 28, 33, 39], [0])
    haystacks, places = build_haystacks(short_task(), passages=6, queries=12), needle_positions(6, None)
    whole, beginning = (run_needle(haystacks, places, FirstWords(words), ABOUT) for words in (10_000, 2 * 6))
    assert [row["ndcg_at_10"] for row in whole["rows"]] == [1.0] * 6
    scores = [row["ndcg_at_10"] for row in beginning["rows"]]
    assert scores[:2] == [1.0, 1.0]
    assert max(scores[2:]) < 0.6  # ties alone
    assert len(set(scores[2:])) == 1
    assert whole["kind"] == "needle"
    assert (whole["passages"], whole["positions"], whole["queries"], whole["seed"]) == (6, 6, 12, 0)
    assert whole["mean_document_chars"] == pytest.approx(np.mean([len(t) for t in haystacks.at(0).documents.values()]))
    json.dumps(whole)
