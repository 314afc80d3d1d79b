"""Scores by the place of a needle in a haystack (Table 17, Figure 2; paper, section 5.1).

Every query gets a document of its own: the passage that answers it among passages that do not. Moving the passage from
place to place changes nothing else, so the scores say how far into a document an encoder reads.
"""

import logging
import random
import time
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ..statistics import align, points
from ..tasks.schema import RetrievalTask, fingerprint_of
from .shared import origin, summarize

logger = logging.getLogger(__name__)

SEPARATOR = "\n\n"
WHOLE_PASSAGES = 2  # a document up to so many passages long is itself the passage


class Passage(NamedTuple):
    """Characters `start` to `end` of a document."""

    pid: str
    start: int
    end: int


@dataclass(frozen=True)
class Haystacks:
    """For each query its needle, and the distractors in the order in which they surround it at every place.

    Attributes:
        task: where queries and passages come from.
        needles: {qid: passage that answers}; no two overlap.
        distractors: {qid: passages}, from documents that do not answer the query, and without anyone's needle.
        passages: of every document, the needle included.
    """

    task: RetrievalTask
    needles: dict[str, Passage]
    distractors: dict[str, list[Passage]]
    passages: int
    passage_chars: int
    seed: int

    def at(self, position: int) -> RetrievalTask:
        """Return the task whose needles stand at this place, 0 being the first of `passages`."""
        documents, qrels = {}, {}
        for number, (qid, needle) in enumerate(self.needles.items()):
            pid = f"haystack_{number:05d}"
            order = [*self.distractors[qid][:position], needle, *self.distractors[qid][position:]]
            documents[pid] = SEPARATOR.join(text_of(self.task, passage) for passage in order)
            qrels[qid] = {pid: 1}
        queries = {qid: self.task.queries[qid] for qid in self.needles}
        name = f"{self.task.name} needle {position}"
        fingerprint = fingerprint_of(queries, documents, qrels)
        return RetrievalTask(name, self.task.split, queries, documents, qrels, fingerprint, self.task.source)


def run_needle(haystacks: Haystacks, positions: list[int], ranker, about: dict) -> dict:
    """Return a record of kind "needle": scores of the haystacks with the needles at each of the places.

    Args:
        positions: places of the needle, at least one; see `needle_positions`.
        ranker: see `rankers`; one without a `report` is taken to read all of a haystack.
        about: which system it is; see `provenance`.
    """
    from ..progress import counted
    from ..search import score_ranking  # slow to import

    start = time.perf_counter()
    rows = []
    with counted(len(positions), f"{about['system']}, needle", "place") as count:
        for position in positions:
            task = haystacks.at(position)
            with count.part(1):
                scores = score_ranking(ranker.rank(task), task.qrels)
            rows.append({"position": position, **summarize(list(scores.values()))})
    return {
        "kind": "needle",
        **about,
        **origin(haystacks.task),
        "passages": haystacks.passages,
        "positions": len(positions),
        "queries": len(haystacks.needles),
        "passage_chars": haystacks.passage_chars,
        "mean_document_chars": float(np.mean([len(text) for text in task.documents.values()])),
        "seed": haystacks.seed,
        "rows": rows,
        "seen_share": getattr(ranker, "report", {"seen_share": 1.0})["seen_share"],
        "seconds": round(time.perf_counter() - start, 3),
    }


def format_needle(records: list[dict]) -> str:
    """Return records of the same haystacks as a table for the terminal."""
    first = records[0]
    rows = [
        [str(row["position"]), *(points(record["rows"][number]["ndcg_at_10"]) for record in records)]
        for number, row in enumerate(first["rows"])
    ]
    rows.append(["% seen", *(points(record["seen_share"]) for record in records)])
    note = (
        f"(nDCG@10 in points by place of the needle; {first['queries']} queries, {first['passages']} passages and "
        f"{first['mean_document_chars']:,.0f} characters a document)"
    )
    return align(["place", *(record["system"] for record in records)], rows) + "\n" + note


def needle_positions(passages: int, count: int | None) -> list[int]:
    """Return `count` places from the first to the last of `passages`, evenly spaced; all of them if None."""
    count = min(count or passages, passages)
    return [round(place * (passages - 1) / max(count - 1, 1)) for place in range(count)]


def build_haystacks(
    task: RetrievalTask, passages: int = 40, queries: int = 200, passage_chars: int = 1_000, seed: int = 0
) -> Haystacks:
    """Choose needles and their distractors.

    Args:
        passages: of each document; the paper has 40.
        queries: at most so many, and fewer where needles would overlap or cannot be found.
        passage_chars: length of the passages cut from documents that are longer than WHOLE_PASSAGES of them.
    """
    needles = _choose_needles(task, passages_of(task, passage_chars), queries, seed)
    pool = distractor_pool(task, needles, passage_chars)
    pieces = Counter(passage.pid for passage in pool)
    distractors = {}
    for qid in needles:
        answers = {pid for pid, grade in task.qrels[qid].items() if grade > 0}
        own = sum(pieces[pid] for pid in answers)
        if len(pool) - own < passages - 1:
            raise ValueError(
                f"passages={passages} needs {passages - 1} distractors a query, but task {task.name!r} has "
                f"{len(pool) - own} of {passage_chars} characters; ask for fewer or shorter passages, or fewer queries"
            )
        drawn = random.Random(f"{seed} {qid}").sample(pool, passages - 1 + own)
        distractors[qid] = [passage for passage in drawn if passage.pid not in answers][: passages - 1]
    return Haystacks(task, needles, distractors, passages, passage_chars, seed)


def passages_of(task: RetrievalTask, passage_chars: int) -> dict[str, Passage]:
    """Return {qid: the passage that answers it}: a short document, or a long one's part from the answer's beginning."""
    found = {}
    for qid in task.qrels:
        pid = next(iter(task.answers(qid)), None)
        text = task.documents.get(pid, "")
        if 0 < len(text.strip()) <= WHOLE_PASSAGES * passage_chars:
            found[qid] = Passage(pid, 0, len(text))
        elif text and task.positions and qid in task.positions:
            place = int(task.positions[qid] * len(text))
            start = max(text.rfind(" ", 0, place), text.rfind("\n", 0, place)) + 1  # of the word that lies there
            found[qid] = Passage(pid, start, _word_end(text, start, start + passage_chars))
    if not found:
        raise ValueError(
            f"task {task.name!r} has documents of more than {WHOLE_PASSAGES * passage_chars} characters and does not "
            "say where in them the answers begin; give its queries a column `position` or `answer`"
        )
    missing = len(task.queries) - len(found)
    if missing:
        logger.warning("%d of %d queries have no passage that is known to answer", missing, len(task.queries))
    return found


def _choose_needles(task: RetrievalTask, found: dict[str, Passage], count: int, seed: int) -> dict[str, Passage]:
    """Draw at most `count` queries, none of whose passages overlaps another's or has its text."""
    qids = sorted(found)
    random.Random(f"{seed} needles").shuffle(qids)
    needles: dict[str, Passage] = {}
    texts: set[str] = set()
    for qid in qids:
        passage, text = found[qid], text_of(task, found[qid])
        others = (other for other in needles.values() if other.pid == passage.pid)
        overlaps = any(passage.start < other.end and other.start < passage.end for other in others)
        if len(needles) < count and text not in texts and not overlaps:
            needles[qid] = passage
            texts.add(text)
    return needles


def distractor_pool(task: RetrievalTask, needles: dict[str, Passage], passage_chars: int) -> list[Passage]:
    """Return every passage that has no needle's text: short documents whole, long ones cut around needles.

    What is left between two needles and is shorter than half a passage is left out.
    """
    unfit = {"", *(text_of(task, needle) for needle in needles.values())}
    by_document = {pid: sorted(own) for pid, own in groupby(sorted(needles.values()), key=lambda needle: needle.pid)}
    pool: list[Passage] = []
    for pid, text in task.documents.items():
        own = by_document.get(pid, [])
        passages = [] if own else [Passage(pid, 0, len(text))]
        if len(text) > WHOLE_PASSAGES * passage_chars:
            passages = []
            ends, starts = [0, *(needle.end for needle in own)], [*(needle.start for needle in own), len(text)]
            for start, limit in zip(ends, starts, strict=True):
                while limit - start > passage_chars // 2:
                    end = _word_end(text, start, min(start + passage_chars, limit))
                    passages.append(Passage(pid, start, end))
                    start = end
        pool += [passage for passage in passages if text_of(task, passage) not in unfit]
    return pool


def text_of(task: RetrievalTask, passage: Passage) -> str:
    """Return the passage's text, without white space at its ends."""
    return task.documents[passage.pid][passage.start : passage.end].strip()


def _word_end(text: str, start: int, stop: int) -> int:
    """Return the last end of a word up to `stop`; `stop` itself where no word ends after `start`."""
    if stop >= len(text) or text[stop].isspace():
        return min(stop, len(text))
    cut = max(text.rfind(" ", start, stop), text.rfind("\n", start, stop))
    return cut if cut > start else stop
