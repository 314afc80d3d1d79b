"""Make batches of the texts of many requests: short ones first, and none waits for ever.

A text is due when it came, and later by a second for every AGING_TOKENS_PER_SECOND tokens of it and of the texts before
it in its request. What is due first is read first: a query passes documents that wait, and a document passes what comes
much later. One thread more than there are cores reads only what is short: a query need not wait for what is being read.
"""

import bisect
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

logger = logging.getLogger(__name__)

BATCH_TOKENS = 16_384  # padded tokens that a thread reads at once, or one text
SHORT_BATCH_TOKENS = 4_096  # of the thread for short texts
SHORT_TOKENS = 512  # of a text, with those before it in its request: the thread for short texts takes it
PADDED_FREELY = 128  # tokens: shorter texts are padded to any length up to this
QUEUE_TOKENS = 1_048_576  # that may wait
AGING_TOKENS_PER_SECOND = 1_000
SCANNED = 1_000  # waiting texts among which a batch is looked for


class QueueFull(Exception):
    """No more tokens may wait now; there may be room in `seconds`."""

    def __init__(self, waiting: int, seconds: int):
        super().__init__(f"{waiting} tokens are waiting already; try again in {seconds} s")
        self.seconds = seconds


@dataclass
class Job:
    """A text that waits for its vector, which its future gets."""

    content: Any  # what the encoder reads
    kind: str  # a batch holds one kind
    tokens: int
    due: float = 0.0
    short: bool = False
    future: Future = field(default_factory=Future)


class Batcher:
    """Run an encoder in threads, on batches of the jobs that wait.

    Args:
        encode: called with jobs of one kind, in any thread; returns a vector for each.
        threads: that take any job. One more takes short ones only.
    """

    def __init__(self, encode: Callable[[list[Job]], Sequence], threads: int):
        self._encode, self._threads = encode, threads
        self._queue: list[Job] = []  # by the time that they are due
        self.waiting_tokens = self._done_tokens = 0
        self._busy_seconds, self._closed, self._changed = 0.0, False, threading.Condition()
        for number in range(threads + 1):
            threading.Thread(target=self._work, args=(number == threads,), name=f"m2bert-{number}", daemon=True).start()

    def submit(self, jobs: Sequence[Job]) -> list[Future]:
        """Let the jobs of one request wait, all of them or none. Raises QueueFull, or ValueError if they never fit."""
        total, before, now = sum(job.tokens for job in jobs), 0, time.monotonic()
        if total > QUEUE_TOKENS:
            raise ValueError(f"the request has {total} tokens, and at most {QUEUE_TOKENS} may wait; send fewer texts")
        with self._changed:
            excess = self.waiting_tokens + total - QUEUE_TOKENS
            if excess > 0:
                seconds = excess * self._busy_seconds / max(self._done_tokens, 1) / self._threads
                raise QueueFull(self.waiting_tokens, max(math.ceil(seconds), 1))
            for job in jobs:
                before += job.tokens
                job.due, job.short = now + before / AGING_TOKENS_PER_SECOND, before <= SHORT_TOKENS
                bisect.insort(self._queue, job, key=lambda job: job.due)
            self.waiting_tokens += total
            self._changed.notify_all()
        return [job.future for job in jobs]

    def close(self) -> None:
        """End the threads when nothing waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self, short_only: bool) -> None:
        while True:
            with self._changed:
                while not (batch := self._take(short_only)):
                    if self._closed:
                        return
                    self._changed.wait()
            self._run(batch)
            del batch  # texts and vectors are not kept while nothing comes

    def _take(self, short_only: bool) -> list[Job]:
        """Take the job that is due first from the queue, and others of like length that fit with it; empty if none."""
        budget = SHORT_BATCH_TOKENS if short_only else BATCH_TOKENS
        batch, gone, shortest, longest = [], [], 0, 0
        for job in islice((job for job in self._queue if job.short or not short_only), SCANNED):
            least, most = min(shortest or job.tokens, job.tokens), max(longest, job.tokens)
            # No text is padded to over twice its length: one long document does not make short ones long.
            fits = most * (len(batch) + 1) <= budget and most <= max(2 * least, PADDED_FREELY)
            if job.future.cancelled():  # its client's time is over
                gone.append(job)
            elif not batch or (fits and job.kind == batch[0].kind):
                batch.append(job)
                shortest, longest = least, most
        left = {id(job) for job in (*batch, *gone)}
        if left:
            self._queue = [job for job in self._queue if id(job) not in left]
            self.waiting_tokens -= sum(job.tokens for job in (*batch, *gone))
        batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
        return batch or (self._take(short_only) if left else [])

    def _run(self, batch: list[Job]) -> None:
        start, tokens = time.monotonic(), sum(job.tokens for job in batch)
        try:
            for job, vector in zip(batch, self._encode(batch), strict=True):
                job.future.set_result(vector)
        except Exception as error:  # of other people's models: the requests fail, the server goes on
            logger.exception("a batch of %d texts, %d tokens, cannot be embedded", len(batch), tokens)
            for job in batch:
                if not job.future.done():
                    job.future.set_exception(error)
        with self._changed:
            self._done_tokens += tokens
            self._busy_seconds += time.monotonic() - start
