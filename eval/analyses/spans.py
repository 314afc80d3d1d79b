"""Where in its document an answer begins (Table 12), and scores by that place."""

import numpy as np

from ..tables import align
from ..tasks.schema import RetrievalTask
from .shared import origin, summarise

QUARTERS = (1, 2, 3, 4)


def describe_spans(task: RetrievalTask) -> dict:
    """Find the quartiles of the answers' beginnings in characters, and how many lie in each quarter of their document.

    Returns:
        A record of kind "spans". `mean_document_chars` is over the documents that hold these answers, each once.

    Raises:
        ValueError: the task does not say where its answers begin.
    """
    if not task.positions:
        raise ValueError(
            f"task {task.name!r} does not say where answers begin; give its queries a column `position` "
            "(0 to 1, the share of the document before it) or `answer` (text that the passage holds)"
        )
    answers = {qid: next(iter(task.qrels[qid])) for qid in task.positions}
    begins = [share * len(task.documents[answers[qid]]) for qid, share in task.positions.items()]  # in characters
    document_chars = [len(task.documents[pid]) for pid in dict.fromkeys(answers.values())]
    return {
        "kind": "spans",
        **origin(task),
        "positions": {
            "count": len(begins),
            "quartiles": np.percentile(begins, [25, 50, 75]).round().tolist(),
            "mean_document_chars": float(np.mean(document_chars)),
        },
        "quarters": [sum(quarter(share) == number for share in task.positions.values()) for number in QUARTERS],
    }


def format_spans(records: list[dict]) -> str:
    """Return the records as a table for the terminal."""
    header = ["task", "answers", "1st quartile", "2nd", "3rd", "mean document", "answers by quarter"]
    rows = []
    for record in records:
        positions = record["positions"]
        numbers = [positions["count"], *positions["quartiles"], positions["mean_document_chars"]]
        quarters = " ".join(map(str, record["quarters"]))
        rows.append([record["task"], *(f"{number:,.0f}" for number in numbers), quarters])
    return align(header, rows) + "\n(beginnings in characters)"


def quarter(position: float) -> int:
    """Return the quarter, 1 to 4, of a share (0 to 1) of a document; a boundary belongs to the later one."""
    return min(int(position * 4), 3) + 1


def ndcg_by_quarter(query_scores: dict[str, float], positions: dict[str, float]) -> list[dict]:
    """Return nDCG@10 by the quarter of the document in which the answer begins, one row for every quarter.

    Args:
        query_scores: {qid: 0 to 1}.
        positions: {qid: share of the document before the answer}; a query that is not there is left out.
    """
    groups: dict[int, list[float]] = {number: [] for number in QUARTERS}
    for qid, position in positions.items():
        if qid in query_scores:
            groups[quarter(position)].append(query_scores[qid])
    return [{"quarter": number, **summarise(scores)} for number, scores in groups.items()]
