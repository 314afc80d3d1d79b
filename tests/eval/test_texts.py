import json

import numpy as np
import pytest

from m2bert.eval.analyses.texts import (
    by_length,
    describe_lengths,
    describe_spans,
    load_token_counter,
    ndcg_by_quarter,
    quarter,
    token_histogram,
)
from m2bert.eval.tasks.schema import load_task, make_task


def count_words(texts):
    return np.array([len(text.split()) for text in texts])


def task_with(positions):
    documents = [{"pid": "long", "passage": "x" * 1_000}, {"pid": "short", "passage": "y" * 100}]
    queries = [
        {"qid": f"q{number}", "query": "?", "answer_pids": [pid], "position": share}
        for number, (pid, share) in enumerate(positions)
    ]
    return make_task("tiny", "test", queries, documents)


def test_scores_fall_into_the_bucket_of_the_model_that_reads_their_answer_whole():
    tokens = {f"q{count}": count for count in [0, 2_048, 2_049, 8_192, 8_193, 32_768, 32_769, 10**6]}
    assert [row["queries"] for row in by_length(dict.fromkeys(tokens, 0.5), tokens)] == [2, 2, 2, 2]
    rows = by_length({"a": 1.0, "b": 0.0, "c": 0.5, "d": 0.25}, {"a": 10, "b": 2_000, "c": 9_000, "d": 40_000})
    assert [list(row.values()) for row in rows] == [
        ["<2k", 2, 0.5, [0, 1]], ["2k-8k", 0, None, None], ["8k-32k", 1, 0.5, None], [">32k", 1, 0.25, None],
    ]  # fmt: skip


@pytest.mark.parametrize("longest", [1, 16, 22, 23, 45, 2_048, 32_131, 1_000_000])
def test_the_histogram_counts_every_text_once_between_edges_that_tasks_share(longest):
    tokens = np.random.default_rng(longest).integers(0, longest, size=200, endpoint=True)
    tokens[0] = longest
    histogram = token_histogram(tokens)
    edges = histogram["edges"]
    assert sum(histogram["counts"]) == 200
    assert len(edges) == len(histogram["counts"]) + 1
    assert edges == sorted(set(edges))
    assert edges[-2] <= max(longest, 16) <= edges[-1]
    assert token_histogram(np.array([2_000_000]))["edges"][: len(edges)] == edges


def test_describes_a_task_by_hand():
    queries = [
        {"qid": "q0", "query": "one two", "answer_pids": ["p1"]},
        {"qid": "q1", "query": "three", "answer_pids": ["p0", "p1"]},
    ]
    documents = [{"pid": "p0", "passage": "a b c"}, {"pid": "p1", "passage": "word " * 101}]
    record = describe_lengths(make_task("tiny", "test", queries, documents, source="here"), count_words, "words")
    assert record["kind"] == "lengths"
    assert (record["task"], record["split"], record["source"], record["tokenizer"]) == ("tiny", "test", "here", "words")
    assert record["queries"] == {"count": 2, "mean_chars": 6.0, "mean_tokens": 1.5}
    assert sum(record["documents"].pop("histogram")["counts"]) == 2
    assert record["documents"] == {
        "count": 2, "mean_chars": 255.0, "median_chars": 255.0, "max_chars": 505,
        "mean_tokens": 52.0, "median_tokens": 52.0, "max_tokens": 101,
    }  # fmt: skip
    assert record["answers_per_query"] == 1.5
    assert record["example"] == {"query": "one two", "passage": ("word " * 101)[:400]}
    json.dumps(record)


def test_a_tokenizer_counts_whole_texts_without_special_tokens(tiny_model, tmp_path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["apple pear", "", "boat " * 40] * 50
    for name in (tiny_model, tmp_path, tmp_path / "tokenizer.json"):
        assert load_token_counter(str(name))(texts).tolist() == [2, 0, 40] * 50


def test_qmsum_has_the_lengths_of_table_11(qmsum_data):
    record = describe_lengths(load_task(qmsum_data, "qmsum", "test"), count_words, "words")
    assert (record["queries"]["count"], record["documents"]["count"]) == (272, 35)
    assert record["queries"]["mean_chars"] == pytest.approx(429.96, abs=0.01)  # the paper has 430
    assert record["documents"]["mean_chars"] == pytest.approx(55_894, abs=1)  # its 58,129 counts documents repeatedly


def test_quartiles_are_in_characters_of_the_answers_document():
    places = [("long", 0.0), ("long", 0.2), ("long", None), ("long", 0.4), ("short", 0.5), ("long", 0.9)]
    record = describe_spans(task_with(places))
    assert record["positions"] == {"count": 5, "quartiles": [50, 200, 400], "mean_document_chars": 550}
    assert record["quarters"] == [2, 1, 1, 1]
    json.dumps(record)
    with pytest.raises(ValueError, match="'tiny' does not say where answers begin.*`position`.*`answer`"):
        describe_spans(task_with([("long", None)]))


def test_quarters_begin_at_their_boundary_and_group_scores():
    assert [quarter(share) for share in (0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 1)] == [1, 1, 2, 3, 3, 4, 4]
    positions = {"a": 0.1, "b": 0.2, "c": 0.9, "unscored": 0.5}
    rows = ndcg_by_quarter({"a": 1.0, "b": 0.5, "c": 0.25, "somewhere": 1.0}, positions)
    assert [list(row.values()) for row in rows] == [
        [1, 2, 0.75, [0.5, 1.0]], [2, 0, None, None], [3, 0, None, None], [4, 1, 0.25, None],
    ]  # fmt: skip
