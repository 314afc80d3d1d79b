"""Scores by the needle's place in the haystack (Table 17, Figure 2)."""

import time
from collections.abc import Iterator
from itertools import chain
from typing import Protocol

import numpy as np

from ..encoders.cache import VectorStore
from ..progress import counted
from ..rankers import Bm25Ranker, DenseRanker, Run
from ..statistics import summarise
from ..tasks.schema import RetrievalTask
from .haystacks import Haystacks
from .provenance import provenance
from .systems import load_systems


class Ranker(Protocol):
    """What searches the haystacks. One without a `report` such as DenseRanker's is taken to read all of them."""

    def rank(self, task: RetrievalTask) -> Run:
        """Scores of the task's documents for each of its queries."""
        ...


def systems_to_rank(encoders: list[str], policies: list[str], store: VectorStore) -> Iterator[tuple[Ranker, dict]]:
    """What ranks for each system, and which it is (see `provenance`): `bm25` once, each model under every policy.

    Raises:
        ValueError: see `load_systems`.
    """
    models = load_systems([name for name in encoders if name != "bm25"], policies)
    lexical = [(Bm25Ranker(), provenance("bm25", "bm25", "whole"))] if "bm25" in encoders else []
    dense = ((DenseRanker(model.encoder, model.policy, store), model.about) for model in models)
    return chain(lexical, dense)


def run_needle(haystacks: Haystacks, positions: list[int], ranker: Ranker, about: dict) -> dict:
    """Rank the haystacks with the needles at each of the places.

    Args:
        positions: places of the needle, at least one; see `needle_positions`.
        about: which system it is; see `provenance`.

    Returns:
        A record of kind "needle" with a row for each place.
    """
    from ..search import score_ranking  # slow to import

    start = time.perf_counter()
    rows = []
    with counted(len(positions), f"{about['system']}, needle", "place") as count:
        for position in positions:
            task = haystacks.at(position)
            with count.part(1):
                scores = score_ranking(ranker.rank(task), task.qrels)
            rows.append({"position": position, **summarise(list(scores.values()))})
    return {
        "kind": "needle",
        **about,
        "task": haystacks.task.name,
        "split": haystacks.task.split,
        "source": haystacks.task.source,
        "revision": haystacks.task.revision,
        "data_fingerprint": haystacks.task.fingerprint,
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
