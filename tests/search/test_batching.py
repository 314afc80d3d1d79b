"""The order in which texts are read, what shares a batch, and what happens when too much waits."""

import threading
import time

import pytest

from m2bert.search import batching
from m2bert.search.batching import Batcher, Job, QueueFull


class Gate:
    """An encoder that waits until it is opened, and notes its batches."""

    def __init__(self):
        self.open, self.entered, self.batches = threading.Event(), threading.Semaphore(0), []

    def __call__(self, jobs):
        self.batches.append([job.content for job in jobs])
        self.entered.release()
        assert self.open.wait(10)
        if any(job.content == "bad" for job in jobs):
            raise RuntimeError("bad text")
        return [job.content for job in jobs]


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


def busy(gate, threads=1):
    """Return a batcher whose threads all read something, the one for short texts too."""
    batcher = Batcher(gate, threads)
    for _ in range(threads):
        batcher.submit([Job("busy", "x", 16_000)])
        assert gate.entered.acquire(timeout=10)
    batcher.submit([Job("busy", "x", 10)])
    assert gate.entered.acquire(timeout=10)
    gate.batches.clear()
    return batcher


def finish(gate, futures):
    gate.open.set()
    return [future.result(10) for future in futures]


def test_a_query_passes_documents_that_wait_and_is_read_beside_them(gate):
    batcher = Batcher(gate, 1)
    documents = [batcher.submit([Job(f"document {number}", "x", 16_000)]) for number in range(3)]
    assert gate.entered.acquire(timeout=10)
    batcher.submit([Job("query", "x", 32)])
    assert gate.entered.acquire(timeout=10)  # while the first document is still being read
    assert gate.batches == [["document 0"], ["query"]]
    finish(gate, sum(documents, []))


def test_no_text_waits_for_ever(gate, monkeypatch):
    batcher, now = busy(gate), time.monotonic()
    monkeypatch.setattr(batching.time, "monotonic", lambda: now)
    first = batcher.submit([Job("document", "x", 16_000)])
    monkeypatch.setattr(batching.time, "monotonic", lambda: now + 10)
    early = batcher.submit([Job("early", "x", 600)])
    monkeypatch.setattr(batching.time, "monotonic", lambda: now + 20)
    late = batcher.submit([Job("late", "x", 6000)])
    monkeypatch.undo()
    finish(gate, first + early + late)
    order = [content for batch in gate.batches for content in batch]
    assert order.index("early") < order.index("document") < order.index("late")


def test_a_request_of_many_short_texts_does_not_hold_up_others(gate):
    batcher = busy(gate)
    bulk = batcher.submit([Job(number, "bulk", 100) for number in range(500)])
    query = batcher.submit([Job("query", "query", 100)])
    finish(gate, bulk + query)
    place = next(number for number, batch in enumerate(gate.batches) if "query" in batch)
    assert place <= 2  # the bulk takes at least four batches, and its beginning may come first
    assert len(gate.batches) >= 5


def test_batches_are_of_one_kind_within_the_budget_and_little_padded(gate):
    batcher = busy(gate)
    lengths = [20, 3000, 60, 7000, 130, 1000, 400, 16_384, 9000, 2500, 90, 550, 20_000]
    futures = [
        batcher.submit([Job((kind, tokens), kind, tokens)])[0] for kind in ("query", "ids") for tokens in lengths
    ]
    assert finish(gate, futures) == [(kind, tokens) for kind in ("query", "ids") for tokens in lengths]
    for batch in gate.batches:
        kinds, tokens = zip(*batch, strict=True)
        assert len(set(kinds)) == 1
        assert max(tokens) <= max(2 * min(tokens), 128)
        assert len(batch) == 1 or max(tokens) * len(batch) <= batching.BATCH_TOKENS
    assert len(gate.batches) < len(futures)  # something was put together


def test_a_full_queue_takes_nothing_of_a_request_and_says_when_to_come_back(gate, monkeypatch):
    monkeypatch.setattr(batching, "QUEUE_TOKENS", 1000)
    batcher = Batcher(gate, 1)
    batcher.submit([Job("first", "x", 900)])
    assert gate.entered.acquire(timeout=10)
    waiting = batcher.submit([Job("waits", "x", 800)])
    with pytest.raises(QueueFull, match="800 tokens are waiting already; try again in 1 s") as refused:
        batcher.submit([Job("small", "x", 10), Job("large", "x", 191)])
    assert refused.value.seconds == 1
    assert batcher.waiting_tokens == 800
    with pytest.raises(ValueError, match="has 1001 tokens, and at most 1000 may wait; send fewer texts"):
        batcher.submit([Job("never", "x", 1001)])
    finish(gate, waiting)
    assert batcher.waiting_tokens == 0
    assert finish(gate, batcher.submit([Job("again", "x", 900)])) == ["again"]


def test_a_text_whose_client_is_gone_is_not_read_and_makes_room(gate):
    batcher = busy(gate)
    gone = [batcher.submit([Job(f"gone {number}", "x", 5000)])[0] for number in range(20)]
    kept = batcher.submit([Job("kept", "x", 5000)])
    assert all(future.cancel() for future in gone)
    assert finish(gate, kept) == ["kept"]
    assert gate.batches == [["kept"]]
    assert batcher.waiting_tokens == 0


def test_an_error_fails_its_batch_only(gate):
    batcher = busy(gate)
    bad = batcher.submit([Job("bad", "bad", 600)])
    good = batcher.submit([Job("good", "good", 600)])
    gate.open.set()
    with pytest.raises(RuntimeError, match="bad text"):
        bad[0].result(10)
    assert good[0].result(10) == "good"


def test_what_waits_when_it_is_closed_is_still_read(gate):
    batcher = busy(gate)
    futures = [batcher.submit([Job(number, "x", 16_000)])[0] for number in range(5)]
    batcher.close()
    assert finish(gate, futures) == list(range(5))
