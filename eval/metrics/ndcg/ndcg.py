"""nDCG@k of rankings as trec_eval defines it, as an `evaluate` module."""

import math
import operator

import datasets
import evaluate
import pytrec_eval

_DESCRIPTION = """
Normalised discounted cumulative gain at cut-off k: the gain of a document is its relevance, discounted by
log2(rank + 1) and divided by the best sum that any ranking of the judged documents could reach. Documents are
ordered by score, equal scores (as 32-bit floats) by document id, both descending: trec_eval's order.
"""

_CITATION = "Järvelin and Kekäläinen: Cumulated gain-based evaluation of IR techniques. TOIS 20(4), 2002."

_KWARGS_DESCRIPTION = """
Args:
    predictions: one dict a query: `query_id` (str), `doc_ids` (list of str), `scores` (list of float).
    references: one dict a query: `query_id` (str), `doc_ids` (list of str), `relevance` (list of whole numbers >= 0).
        `evaluate` wants as many predictions as references: give a query that found nothing empty lists.
    k: cut-off, at least 1. Defaults to 10.
    per_query: also return the value of each query. Defaults to False.

Returns:
    `{"ndcg_at_<k>": float}`, between 0 and 1: the mean over all queries of the references. A query without
    predictions counts as 0, and so does one without a relevant document. A predicted document that is not judged
    has relevance 0. With `per_query=True` also `"per_query": {query_id: float}`.

Examples:
    The first document stands second, which is worth 1 / log2(3); the second query finds nothing:

    >>> ndcg = evaluate.load("eval/metrics/ndcg")
    >>> results = ndcg.compute(
    ...     predictions=[
    ...         {"query_id": "q1", "doc_ids": ["d1", "d2"], "scores": [0.9, 0.2]},
    ...         {"query_id": "q2", "doc_ids": [], "scores": []},
    ...     ],
    ...     references=[
    ...         {"query_id": "q1", "doc_ids": ["d2"], "relevance": [1]},
    ...         {"query_id": "q2", "doc_ids": ["d1"], "relevance": [1]},
    ...     ],
    ...     k=5,
    ...     per_query=True,
    ... )
    >>> {query: round(value, 2) for query, value in results["per_query"].items()}
    {'q1': 0.63, 'q2': 0.0}
    >>> round(results["ndcg_at_5"], 2)
    0.32
"""

HIGHEST_RELEVANCE = 1_000_000  # trec_eval keeps a table of all grades, and reads grades of 2**32 as 0


def ndcg_at_k(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], k: int = 10) -> dict[str, float]:
    """Return nDCG@k of each query of `qrels`; 0 for one that `run` does not rank.

    Args:
        run: {query id: {document id: score}}, higher is better.
        qrels: {query id: {document id: relevance >= 0}}.

    Raises:
        ValueError: k < 1, a score is missing or NaN, a relevance is not a whole number from 0 to HIGHEST_RELEVANCE, or
            `run` ranks a query that has no qrel.
    """
    k = operator.index(k)
    if k < 1:
        raise ValueError(f"k={k} is no cut-off; k must be a whole number from 1 on")
    for query_id, scores in run.items():
        if query_id not in qrels:
            raise ValueError(f"predictions rank query {query_id!r}, which has no reference; drop or judge it")
        for document_id, score in scores.items():
            if score is None or math.isnan(score):
                raise ValueError(f"the score of document {document_id!r} for query {query_id!r} is {score}; fix it")
    grades: dict[str, dict[str, int]] = {}  # integers are all that pytrec_eval takes
    for query_id, judged in qrels.items():
        for document_id, relevance in judged.items():
            if relevance is None or not 0 <= relevance <= HIGHEST_RELEVANCE or relevance != int(relevance):
                raise ValueError(
                    f"the relevance of document {document_id!r} for query {query_id!r} is {relevance}; it must be a "
                    f"whole number from 0 to {HIGHEST_RELEVANCE:,}"
                )
        grades[query_id] = {document_id: int(relevance) for document_id, relevance in judged.items()}
    evaluator = pytrec_eval.RelevanceEvaluator(grades, {f"ndcg_cut.{k}"})
    ranked = evaluator.evaluate({query_id: scores for query_id, scores in run.items() if scores})
    return {query_id: ranked.get(query_id, {}).get(f"ndcg_cut_{k}", 0.0) for query_id in qrels}


def _by_query(rows: list[dict], values: str, name: str) -> dict[str, dict]:
    """Return {query id: {document id: value}}; no document and no query may occur twice."""
    table = {}
    for row in rows:
        query_id, document_ids, its_values = row["query_id"], row["doc_ids"] or [], row[values] or []
        table[query_id] = dict(zip(document_ids, its_values, strict=False))
        if not len(document_ids) == len(its_values) == len(table[query_id]):
            raise ValueError(
                f"{name} of query {query_id!r}: {len(document_ids)} doc_ids, {len(set(document_ids))} of them "
                f"different, but {len(its_values)} {values}; give each document once, with its value"
            )
    if len(table) < len(rows):
        raise ValueError(f"a query occurs twice in {name}; give each query one row")
    return table


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class NDCG(evaluate.Metric):
    """nDCG@k as trec_eval defines it."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": {
                        "query_id": datasets.Value("string"),
                        "doc_ids": datasets.Sequence(datasets.Value("string")),
                        "scores": datasets.Sequence(datasets.Value("float64")),
                    },
                    "references": {
                        "query_id": datasets.Value("string"),
                        "doc_ids": datasets.Sequence(datasets.Value("string")),
                        # Not an integer: 1.7 would be cut to 1 before anyone could object.
                        "relevance": datasets.Sequence(datasets.Value("float64")),
                    },
                }
            ),
            reference_urls=["https://github.com/usnistgov/trec_eval"],
        )

    def _compute(self, predictions, references, k=10, per_query=False):
        run = _by_query(predictions, "scores", "predictions")
        qrels = _by_query(references, "relevance", "references")
        if not qrels:
            raise ValueError("references are empty; a mean needs at least one query")
        values = ndcg_at_k(run, qrels, k)
        result = {f"ndcg_at_{k}": sum(values.values()) / len(values)}
        if per_query:
            result["per_query"] = values
        return result
