"""Where in its document an answer begins (Table 12), and scores by that place."""

import numpy as np

from ..statistics import summarise
from ..tasks.schema import RetrievalTask

QUARTERS = (1, 2, 3, 4)


def describe_spans(task: RetrievalTask) -> dict:
    """Quartiles of the answers' beginnings in characters, and how many lie in each quarter of their document.

    Returns:
        A record of kind "spans". `mean_document_chars` is over the documents that hold these answers, each once.

    Raises:
        ValueError: the task does not say where its answers begin.
    """
    positions = known_positions(task)
    answers = {qid: next(iter(task.qrels[qid])) for qid in positions}
    begins = [share * len(task.documents[answers[qid]]) for qid, share in positions.items()]  # in characters
    document_chars = [len(task.documents[pid]) for pid in dict.fromkeys(answers.values())]
    return {
        "kind": "spans",
        "task": task.name,
        "split": task.split,
        "source": task.source,
        "revision": task.revision,
        "data_fingerprint": task.fingerprint,
        "positions": {
            "count": len(begins),
            "quartiles": np.percentile(begins, [25, 50, 75]).round().tolist(),
            "mean_document_chars": float(np.mean(document_chars)),
        },
        "quarters": [sum(quarter(share) == number for share in positions.values()) for number in QUARTERS],
    }


def known_positions(task: RetrievalTask) -> dict[str, float]:
    """{qid: where its answer begins, as a share of the document}.

    Raises:
        ValueError: the task does not say it.
    """
    if not task.positions:
        raise ValueError(
            f"task {task.name!r} does not say where answers begin; give its queries a column `position` "
            "(0 to 1, the share of the document before it) or `answer` (text that the passage holds)"
        )
    return task.positions


def quarter(position: float) -> int:
    """1 to 4: the quarter of the document in which a share (0 to 1) of it lies; a boundary belongs to the later one."""
    return min(int(position * 4), 3) + 1


def ndcg_by_quarter(query_scores: dict[str, float], positions: dict[str, float]) -> list[dict]:
    """nDCG@10 by the quarter of the document in which the answer begins, one row for every quarter.

    Args:
        query_scores: {qid: 0 to 1}.
        positions: {qid: share of the document before the answer}; a query that is not there is left out.
    """
    groups: dict[int, list[float]] = {number: [] for number in QUARTERS}
    for qid, position in positions.items():
        if qid in query_scores:
            groups[quarter(position)].append(query_scores[qid])
    return [{"quarter": number, **summarise(scores)} for number, scores in groups.items()]
