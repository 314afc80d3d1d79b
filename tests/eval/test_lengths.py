import json

import numpy as np
import pytest

from m2bert.eval.analyses.lengths import (
    BUCKETS,
    bucket,
    by_length,
    describe_lengths,
    load_token_counter,
    token_histogram,
)
from m2bert.eval.tasks.schema import make_task


def count_words(texts):
    return np.array([len(text.split()) for text in texts])


def test_a_text_that_a_model_reads_whole_is_in_that_models_bucket():
    lengths = [0, 2_048, 2_049, 8_192, 8_193, 32_768, 32_769, 1_000_000]
    names = ["<2k", "<2k", "2k-8k", "2k-8k", "8k-32k", "8k-32k", ">32k", ">32k"]
    assert [bucket(tokens) for tokens in lengths] == names


def test_scores_fall_into_the_buckets_of_their_answers():
    scores = {"a": 1.0, "b": 0.0, "c": 0.5, "d": 0.25}
    rows = by_length(scores, {"a": 10, "b": 2_000, "c": 9_000, "d": 40_000})
    assert [row["bucket"] for row in rows] == list(BUCKETS)
    assert [row["queries"] for row in rows] == [2, 0, 1, 1]
    assert [row["ndcg_at_10"] for row in rows] == [0.5, None, 0.5, 0.25]
    assert [row["interval_95"] for row in rows] == [[0, 1], None, None, None]


@pytest.mark.parametrize("longest", [1, 16, 22, 23, 45, 2_048, 32_131, 1_000_000])
def test_the_histogram_counts_every_text_once(longest):
    tokens = np.random.default_rng(longest).integers(0, longest, size=200, endpoint=True)
    tokens[0] = longest
    histogram = token_histogram(tokens)
    edges = histogram["edges"]
    assert sum(histogram["counts"]) == 200
    assert len(edges) == len(histogram["counts"]) + 1
    assert edges == sorted(set(edges))
    assert edges[-2] <= max(longest, 16) <= edges[-1]


def test_tasks_share_the_edges_of_their_histograms():
    short, long = token_histogram(np.array([100])), token_histogram(np.array([50_000]))
    assert long["edges"][: len(short["edges"])] == short["edges"]
    assert {2_048, 8_192, 32_768} <= set(long["edges"])


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
    from m2bert.eval.tasks.schema import load_task

    record = describe_lengths(load_task(qmsum_data, "qmsum", "test"), count_words, "words")
    assert (record["queries"]["count"], record["documents"]["count"]) == (272, 35)
    assert record["queries"]["mean_chars"] == pytest.approx(429.96, abs=0.01)  # the paper has 430
    assert record["documents"]["mean_chars"] == pytest.approx(55_894, abs=1)  # its 58,129 counts documents repeatedly
