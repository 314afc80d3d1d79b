"""Streams: what is asked of the Hub, who reads what, and that a stopped run reads on."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

datasets = pytest.importorskip("datasets")

from m2bert.train.text import hub_data  # noqa: E402
from m2bert.train.text.data_mlm import MixtureBatches  # noqa: E402
from m2bert.train.text.hub_data import StreamedExamples, open_stream  # noqa: E402
from m2bert.train.text.masking import Masking  # noqa: E402
from m2bert.train.text.source_data import open_source  # noqa: E402
from m2bert.train.text.text_sources import parse_sources  # noqa: E402
from m2bert.train.text.token_store import held_out_limit, text_hash  # noqa: E402
from m2bert.train.tokenizer import encode_all, train_wordpiece  # noqa: E402

WORDS = [f"w{i}" for i in range(60)]
RNG = np.random.default_rng(0)
TEXTS = [" ".join([f"start{i}", *RNG.choice(WORDS, RNG.integers(1, 60))]) for i in range(90)]
TOKENIZER = train_wordpiece([*TEXTS, *TEXTS], 1000)
IDS = [ids.tolist() for ids in encode_all(TOKENIZER, TEXTS)]


@pytest.fixture
def stream(tmp_path, monkeypatch):
    """Open a process's examples of TEXTS, three shards pretending to be on the Hub; records what was asked for."""
    asked = []

    def load_dataset(*arguments, **settings):
        asked.append((arguments, settings))
        files = str(tmp_path / f"{settings['split']}-*.parquet")
        return datasets.load_dataset("parquet", data_files=files, split="train", streaming=settings["streaming"])

    def open_one(rank=0, world=1, texts=TEXTS, keep=lambda text: True, split="train", spread=False, **entry):
        for i in range(3):
            rows = texts[i * len(texts) // 3 : (i + 1) * len(texts) // 3]
            pq.write_table(pa.table({"text": rows, "url": rows}), tmp_path / f"train-{i}.parquet")
        (source,) = parse_sources([{"path": "org/name", **entry}], None)
        rows = open_stream(source, split, rank, world)
        return StreamedExamples(rows, source, 40, TOKENIZER, (0, 1, rank), keep, spread)

    monkeypatch.setattr(hub_data, "load_dataset", load_dataset)
    monkeypatch.setattr(hub_data, "CHARS_AT_ONCE", 700)
    open_one.asked = asked
    return open_one


def documents(data, count):
    return [data.document().tolist() for _ in range(count)]


def test_the_hub_is_asked_for_the_split_and_streamed(stream):
    stream(config="en", revision="abc")
    assert stream.asked == [(("org/name", "en"), {"split": "train", "revision": "abc", "streaming": True})]


def test_documents_come_in_order_again_and_again(stream):
    assert documents(stream(), 200) == [*IDS, *IDS, *IDS][:200]


def test_rows_are_documents_joined_and_cut(stream):
    rows = stream().take("maximum", 150)
    assert all(
        len(row) == 40 and row[0] == TOKENIZER.cls_token_id and row[-1] == TOKENIZER.sep_token_id for row in rows
    )
    joined = [token for ids in IDS * 5 for token in [*ids, TOKENIZER.sep_token_id]]
    assert np.concatenate([row[1:-1] for row in rows]).tolist() == joined[: 150 * 38]


def test_passages_follow_one_another_in_documents_that_are_long_enough(stream):
    long = [ids for ids in IDS if len(ids) >= 8]
    assert len(long) < len(IDS)
    lengths, data = set(), stream()
    for ids in long:
        while len(ids) >= 8:  # all of it is used, up to a rest that is too short
            (row,) = data.take("variable", 1)
            content = row[1:-1].tolist()
            assert content == ids[: len(content)]
            assert 10 <= len(row) <= 40
            lengths.add(len(row))
            ids = ids[len(content) :]
    assert len(lengths) > 10


def test_passages_that_are_spread_are_of_one_document_each(stream):
    long, inside = [ids for ids in IDS if len(ids) >= 8], 0
    for row, ids in zip(stream(spread=True).take("variable", len(long)), long, strict=True):
        content = row[1:-1].tolist()
        assert any(ids[i : i + len(content)] == content for i in range(len(ids)))
        inside += content != ids[: len(content)]
    assert inside > 10


@pytest.mark.parametrize("world", [2, 3])  # three shards: dealt out row by row, and by shard
def test_processes_share_the_documents(stream, world):
    taken = []
    for rank in range(world):
        taken += documents(stream(rank, world), len(TEXTS) // world)
    assert sorted(taken) == sorted(IDS)


@pytest.mark.parametrize("world", [1, 2])
def test_a_stopped_run_reads_on_however_often_it_is_stopped(stream, world):
    whole, stopped = (stream(world - 1, world) for _ in range(2))
    for turn in range(150):  # several passes
        kind, count = ("variable", "maximum")[turn % 2], turn % 7
        rows, expected = stopped.take(kind, count), whole.take(kind, count)
        assert all(np.array_equal(a, b) for a, b in zip(expected, rows, strict=True)), turn
        state = json.loads(json.dumps(stopped.state()))
        if turn % 3:
            stopped = stream(world - 1, world)
        else:
            stopped.take("maximum", 3)  # what was read ahead and is forgotten
        stopped.restore(state)


@pytest.mark.parametrize("world", [1, 2])
def test_rows_are_joined_to_documents_before_they_are_dealt_out(stream, world):
    expected = [ids.tolist() for ids in encode_all(TOKENIZER, ["\n".join(TEXTS[i : i + 9]) for i in range(0, 90, 9)])]
    taken = []
    for rank in range(world):
        taken += documents(stream(rank, world, rows_per_document=9), 10 // world)
    assert sorted(taken) == sorted(expected)


def test_what_is_held_out_is_never_trained_on(stream):
    limit = 20 * held_out_limit()  # a fifth, of a hundredth
    train = documents(stream(keep=lambda text: text_hash(text) >= limit), 60)
    held_out = documents(stream(keep=lambda text: text_hash(text) < limit), 8)
    assert not {tuple(ids) for ids in train} & {tuple(ids) for ids in held_out}


def test_a_streamed_source_in_a_mixture_goes_on_and_holds_out_what_it_should(stream, monkeypatch):
    monkeypatch.setattr("m2bert.train.text.source_data.held_out_limit", lambda: 20 * held_out_limit())
    stream()  # writes the files
    settings = SimpleNamespace(max_tokens=40, batch_tokens=200, accumulate=1, mask_probability=0.3)
    (source,) = parse_sources([{"path": "org/name", "validation_split": None}], None)

    def make():
        data = [open_source(source, settings, TOKENIZER, seed=0, rank=1, world=2)]
        return MixtureBatches(data, settings, Masking(TOKENIZER), seed=0, rank=1)

    mixture, states, batches = make(), [], []
    for _ in range(50):
        states.append(json.loads(json.dumps(mixture.state())))
        batches.append(mixture.next_batch()[0])
    assert mixture.window == 3
    for step in (0, 1, 17, 33, 49):
        again = make()
        again.restore(states[step])
        for expected in batches[step:]:
            (batch,) = again.next_batch()
            assert batch["labels"].tolist() == expected["labels"].tolist()
            assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
    (data,) = make().data
    assert (data.train.spread, data.validation.spread) == (False, True)
    held_out = {tuple(ids) for ids in documents(data.validation, 30)}
    trained = {tuple(ids) for ids in documents(data.train, 60)}
    assert not held_out & trained
    assert 5 < len(held_out) < 30  # a fifth of both processes' documents


def test_counting_tokens_leaves_the_position(stream):
    data = stream()
    counts = data.token_counts(1000)
    read = [token for ids in IDS for token in ids]
    first = read[: counts.sum()]
    assert len(first) > 100
    assert counts.tolist() == np.bincount(first, minlength=1000).tolist()
    assert documents(data, 3) == IDS[:3]


def test_a_source_without_text_is_named(stream):
    for texts, message in ((["", " ", ""], "name .org/name. has no text"), (["a b"] * 3, "no document of 8 tokens")):
        with pytest.raises(ValueError, match=message):
            stream(texts=texts).take("variable", 1)
    with pytest.raises(ValueError, match="no column 'body' .it has text, url."):
        stream(column="body")


def test_what_the_hub_does_not_have_is_named(stream, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("Dataset 'org/name' doesn't exist on the Hub")

    monkeypatch.setattr(hub_data, "load_dataset", missing)
    with pytest.raises(ValueError, match="source 'org/name' is no local path and cannot be read from the Hub: Dataset"):
        stream()
