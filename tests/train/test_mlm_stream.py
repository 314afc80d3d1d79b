"""Streams: what is asked of the Hub, who reads what, and that a stopped run reads on."""

import json
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m2bert.train.text import examples, mixture
from m2bert.train.text.examples import StreamedExamples, open_stream
from m2bert.train.text.mixture import Masking, MixtureBatches, open_source
from m2bert.train.text.sources import parse_sources
from m2bert.train.text.tokens import HELD_OUT_LIMIT
from m2bert.train.tokenizer import encode_all, train_wordpiece

WORDS = [f"w{i}" for i in range(60)]
RNG = np.random.default_rng(0)
TEXTS = [" ".join([f"start{i}", *RNG.choice(WORDS, RNG.integers(1, 60))]) for i in range(90)]
TOKENIZER = train_wordpiece([*TEXTS, *TEXTS], 1000)
IDS = [ids.tolist() for ids in encode_all(TOKENIZER, TEXTS)]
LONG = [ids for ids in IDS if len(ids) >= 8]


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """Open a process's examples of TEXTS, three shards pretending to be on the Hub; records what was asked for."""
    asked, load_dataset = [], datasets.load_dataset

    def from_the_hub(*arguments, **settings):
        asked.append((arguments, settings))
        files = str(tmp_path / f"{settings['split']}-*.parquet")
        return load_dataset("parquet", data_files=files, split="train", streaming=settings["streaming"])

    def open_one(rank=0, world=1, texts=TEXTS, spread=False, **entry):
        for i in range(3):
            rows = texts[i * len(texts) // 3 : (i + 1) * len(texts) // 3]
            pq.write_table(pa.table({"text": rows, "url": rows}), tmp_path / f"train-{i}.parquet")
        (source,) = parse_sources([{"path": "org/name", **entry}], None)
        rows = open_stream(source, "train", TOKENIZER, lambda text: True, rank, world)
        return StreamedExamples(rows, "name", 40, TOKENIZER, (0, 1, rank), spread)

    monkeypatch.setattr(datasets, "load_dataset", from_the_hub)
    monkeypatch.setattr(examples, "STREAMED_ROWS", 7)
    open_one.asked = asked
    return open_one


def documents(data, count):
    return [data.document().tolist() for _ in range(count)]


def test_the_hub_is_asked_for_the_split_and_streamed(stream):
    stream(config="en", revision="abc")
    assert stream.asked == [(("org/name", "en"), {"split": "train", "revision": "abc", "streaming": True})]


def test_rows_are_documents_joined_and_cut(stream):
    rows = stream().take("maximum", 150)
    cls, sep = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id
    assert all(len(row) == 40 and row[0] == cls and row[-1] == sep for row in rows)
    joined = [token for ids in IDS * 5 for token in [*ids, sep]]
    assert np.concatenate([row[1:-1] for row in rows]).tolist() == joined[: 150 * 38]


def test_passages_follow_one_another_in_documents_that_are_long_enough(stream):
    assert len(LONG) < len(IDS)
    lengths, data = set(), stream()
    for ids in LONG:
        while len(ids) >= 8:  # all of it is used, up to a rest that is too short
            (row,) = data.take("variable", 1)
            content = row[1:-1].tolist()
            assert content == ids[: len(content)]
            assert 10 <= len(row) <= 40
            lengths.add(len(row))
            ids = ids[len(content) :]
    assert len(lengths) > 10


def test_passages_that_are_spread_are_of_one_document_each(stream):
    inside = 0
    for row, ids in zip(stream(spread=True).take("variable", len(LONG)), LONG, strict=True):
        content = row[1:-1].tolist()
        assert any(ids[i : i + len(content)] == content for i in range(len(ids)))
        inside += content != ids[: len(content)]
    assert inside > 10


@pytest.mark.parametrize("world", [2, 3])  # three shards: dealt out row by row, and by shard
def test_processes_share_the_documents(stream, world):
    taken = [ids for rank in range(world) for ids in documents(stream(rank, world), len(TEXTS) // world)]
    assert sorted(taken) == sorted(IDS)


@pytest.mark.parametrize("world", [1, 2])
def test_rows_are_joined_to_documents_before_they_are_dealt_out(stream, world):
    expected = [ids.tolist() for ids in encode_all(TOKENIZER, ["\n".join(TEXTS[i : i + 9]) for i in range(0, 90, 9)])]
    streams = [stream(rank, world, rows_per_document=9) for rank in range(world)]
    assert sorted(ids for one in streams for ids in documents(one, 10 // world)) == sorted(expected)


@pytest.fixture
def batches(stream, monkeypatch):
    """Make the mixture of a streamed source for the last process; a fifth of it is held out."""
    monkeypatch.setattr(mixture, "HELD_OUT_LIMIT", 20 * HELD_OUT_LIMIT)
    stream()  # writes the files
    settings = SimpleNamespace(max_tokens=40, batch_tokens=200, accumulate=1, mask_probability=0.3)

    def make(world, rows):
        (source,) = parse_sources([{"path": "org/name", "validation_split": None, "rows_per_document": rows}], None)
        data = [open_source(source, settings, TOKENIZER, seed=0, rank=world - 1, world=world)]
        return MixtureBatches(data, settings, Masking(TOKENIZER), seed=0, rank=world - 1)

    return make


@pytest.mark.parametrize(("world", "rows"), [(1, 1), (2, 1), (2, 3)])
def test_a_stopped_run_reads_on(batches, world, rows):
    whole, states, found = batches(world, rows), [], []
    for _ in range(50):  # several passes
        states.append(json.loads(json.dumps(whole.state())))
        found.append(whole.next_batch()[0])
    assert whole.window >= 2
    for step in (0, 1, 17, 33, 49):
        again = batches(world, rows)
        again.next_batch()
        again.restore(states[step])
        for expected in found[step:]:
            (batch,) = again.next_batch()
            assert batch["labels"].tolist() == expected["labels"].tolist()
            assert batch["input_ids"].tolist() == expected["input_ids"].tolist()


def test_what_is_held_out_is_never_trained_on(batches):
    (data,) = batches(2, 1).data
    assert (data.train.spread, data.validation.spread) == (False, True)
    held_out = {tuple(ids) for ids in documents(data.validation, 30)}
    assert not held_out & {tuple(ids) for ids in documents(data.train, 60)}
    assert 5 < len(held_out) < 30  # a fifth of both processes' documents


def test_counting_tokens_leaves_the_position(stream, monkeypatch):
    data = stream()
    for chars, read in ((700, None), (2**18, IDS)):
        monkeypatch.setattr(examples, "COUNTED_CHARS", chars)
        ends = np.cumsum([len(text) for text in TEXTS])
        read = read or IDS[: np.searchsorted(ends, chars) + 1]
        assert data.token_counts(1000).tolist() == np.bincount(np.concatenate(read), minlength=1000).tolist()
    assert documents(data, 3) == IDS[:3]


def test_what_cannot_be_read_is_named(stream, monkeypatch):
    for texts in (["", " ", ""], ["a b"] * 3):
        with pytest.raises(ValueError, match="source name has no document of 8 tokens"):
            stream(texts=texts).take("variable", 1)
    with pytest.raises(ValueError, match=r"source 'org/name' .* column 'body' .*\['text', 'url'\]"):
        stream(column="body")
    unknown = datasets.IterableDataset.from_generator(lambda: iter([{"text": 5}]))  # columns are known from its rows
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: unknown)
    with pytest.raises(ValueError, match="source 'org/name' .* column 'body' cannot be read"):
        stream(column="body")
    with pytest.raises(ValueError, match="org/name holds no text as 'text': {'text': 5}"):
        stream().take("variable", 1)

    def missing(*_, **__):
        raise FileNotFoundError("Dataset 'org/name' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(ValueError, match="source 'org/name' is no local path, .* cannot be read from the Hub: Dataset"):
        stream()
