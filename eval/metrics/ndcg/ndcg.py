"""nDCG@k of rankings as trec_eval defines it, as an `evaluate` module."""

import math
import numbers

import datasets
import evaluate
import pytrec_eval

_DESCRIPTION = """
Normalized discounted cumulative gain at cut-off k: the gain of a document is its relevance, discounted by
log2(rank + 1) and divided by the best sum that any ranking of the judged documents could reach. Documents are
ordered by score, equal scores (as 32-bit floats) by document id, both descending: trec_eval's order.
"""

_CITATION = "Järvelin and Kekäläinen: Cumulated gain-based evaluation of IR techniques. TOIS 20(4), 2002."

_KWARGS_DESCRIPTION = """
Args:
    predictions: one dict a query: `query_id` (str), `doc_ids` (list of str), `scores` (list of float).
    references: one dict a query: `query_id` (str), `doc_ids` (list of str), `relevance` (list of whole numbers).
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

HIGHEST_RELEVANCE = 1_000_000  # trec_eval keeps a table of all grades, and reads a grade of 2**32 as 0


def ndcg_at_k(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], k: int = 10) -> dict[str, float]:
    """Return nDCG@k of each query of `qrels`; 0 for one that `run` does not rank.

    Args:
        run: {query id: {document id: score}}, higher is better.
        qrels: {query id: {document id: relevance}}; a negative relevance counts as 0.

    Raises:
        ValueError: k is no whole number from 1 on, a score is missing or NaN, a relevance is not a whole number up to
            HIGHEST_RELEVANCE, or `run` ranks a query that has no qrel.
    """
    is_cutoff = isinstance(k, numbers.Integral) and not isinstance(k, bool) and k >= 1
    problems = [] if is_cutoff else [f"k={k} is no cut-off; k must be a whole number from 1 on"]
    problems += [f"predictions rank query {query!r}, which has no reference" for query in run if query not in qrels]
    for query, scores in run.items():
        bad = {document: score for document, score in scores.items() if score is None or math.isnan(score)}
        problems += [f"the score of document {each!r} for query {query!r} is {score}" for each, score in bad.items()]
    for query, judged in qrels.items():
        problems += [
            f"the relevance of document {document!r} for query {query!r} is {grade}; give a whole number up to "
            f"{HIGHEST_RELEVANCE:,}"
            for document, grade in judged.items()
            if grade is None or grade % 1 or grade > HIGHEST_RELEVANCE
        ]
    if problems:
        raise ValueError(problems[0])
    # pytrec_eval takes integers alone, and fails on queries whose judgments are all negative.
    grades = {query: {pid: max(0, int(grade)) for pid, grade in judged.items()} for query, judged in qrels.items()}
    evaluator = pytrec_eval.RelevanceEvaluator(grades, {f"ndcg_cut.{k}"})
    ranked = evaluator.evaluate({query: scores for query, scores in run.items() if scores})
    return {query: ranked.get(query, {}).get(f"ndcg_cut_{k}", 0.0) for query in qrels}


def _by_query(rows: list[dict], values: str, name: str) -> dict[str, dict]:
    """Return {query id: {document id: value}}; no document and no query may occur twice."""
    table = {}
    for row in rows:
        query, documents, its_values = row["query_id"], row["doc_ids"] or [], row[values] or []
        if query in table or not len(set(documents)) == len(documents) == len(its_values):
            raise ValueError(
                f"{name} of query {query!r}: {len(documents)} doc_ids and {len(its_values)} {values}; give each query "
                "one row, and each document once, with its value"
            )
        table[query] = dict(zip(documents, its_values, strict=True))
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
            raise ValueError("references are empty; a mean needs a query")
        values = ndcg_at_k(run, qrels, k)
        result = {f"ndcg_at_{k}": sum(values.values()) / len(values)}
        if per_query:
            result["per_query"] = values
        return result
