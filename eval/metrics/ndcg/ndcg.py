"""nDCG@k of rankings as trec_eval defines it, as an `evaluate` module."""

import math

import datasets
import evaluate
import pytrec_eval

_DESCRIPTION = """
Normalised discounted cumulative gain at cut-off k: the gain of a document is its relevance, discounted by
log2(rank + 1) and divided by the best sum that any ranking of the judged documents could reach. Documents are
ordered by score, equal scores (as 32-bit floats) by document id, both descending: trec_eval's order.
"""

_CITATION = """
@article{jarvelin2002cumulated,
    title   = {Cumulated gain-based evaluation of {IR} techniques},
    author  = {J{\\"a}rvelin, Kalervo and Kek{\\"a}l{\\"a}inen, Jaana},
    journal = {ACM Transactions on Information Systems},
    volume  = {20},
    number  = {4},
    pages   = {422--446},
    year    = {2002}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: one dict a query: `query_id` (str), `doc_ids` (list of str), `scores` (list of float).
    references: one dict a query: `query_id` (str), `doc_ids` (list of str), `relevance` (list of int >= 0).
        `evaluate` wants as many predictions as references: give a query that found nothing empty lists.
    k: cut-off, at least 1. Defaults to 10.
    per_query: also return the value of each query. Defaults to False.

Returns:
    `{"ndcg_at_<k>": float}`, between 0 and 1: the mean over all queries of the references, where a query
    without predictions counts as 0. With `per_query=True` also `"per_query": {query_id: float}`.

Examples:
    >>> ndcg = evaluate.load("eval/metrics/ndcg")
    >>> ndcg.compute(
    ...     predictions=[{"query_id": "q1", "doc_ids": ["d1", "d2"], "scores": [0.2, 0.9]}],
    ...     references=[{"query_id": "q1", "doc_ids": ["d2"], "relevance": [1]}],
    ... )
    {'ndcg_at_10': 1.0}
"""


def ndcg_at_k(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, int]], k: int = 10) -> dict[str, float]:
    """nDCG@k of each query of `qrels`; 0 for one that `run` does not rank.

    Args:
        run: {query id: {document id: score}}, higher is better.
        qrels: {query id: {document id: relevance >= 0}}.

    Raises:
        ValueError: k < 1, a score is NaN, a relevance is negative, or `run` ranks a query that has no qrel.
    """
    if k < 1:
        raise ValueError(f"k={k} is no cut-off; k must be at least 1")
    strangers = sorted(run.keys() - qrels.keys())
    if strangers:
        raise ValueError(f"predictions rank query {strangers[0]!r}, which has no reference; drop or judge it")
    for query_id, scores in run.items():
        for document_id, score in scores.items():
            if math.isnan(score):
                raise ValueError(f"the score of document {document_id!r} for query {query_id!r} is NaN")
    for query_id, judged in qrels.items():
        if min(judged.values(), default=0) < 0:
            raise ValueError(f"query {query_id!r} has a negative relevance; relevance must be 0 or more")
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {f"ndcg_cut.{k}"})
    ranked = evaluator.evaluate({query_id: scores for query_id, scores in run.items() if scores})
    return {query_id: ranked.get(query_id, {}).get(f"ndcg_cut_{k}", 0.0) for query_id in qrels}


def _by_query(rows: list[dict], values: str, name: str) -> dict[str, dict]:
    """{query id: {document id: value}}, with the checks that a plain zip would skip."""
    table = {}
    for row in rows:
        query_id, document_ids = row["query_id"], row["doc_ids"]
        if query_id in table:
            raise ValueError(f"query {query_id!r} occurs twice in {name}; give each query one row")
        if len(document_ids) != len(row[values]):
            raise ValueError(
                f"{name} of query {query_id!r}: {len(document_ids)} doc_ids but {len(row[values])} {values}"
            )
        table[query_id] = dict(zip(document_ids, row[values], strict=True))
        if len(table[query_id]) != len(document_ids):
            raise ValueError(f"{name} of query {query_id!r} name a document twice; give each document once")
    return table


class NDCG(evaluate.Metric):
    """nDCG@k; the description of inputs and outputs is in `inputs_description`."""

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
                        "scores": datasets.Sequence(datasets.Value("float32")),
                    },
                    "references": {
                        "query_id": datasets.Value("string"),
                        "doc_ids": datasets.Sequence(datasets.Value("string")),
                        "relevance": datasets.Sequence(datasets.Value("int32")),
                    },
                }
            ),
            reference_urls=["https://github.com/usnistgov/trec_eval"],
        )

    def _compute(self, predictions, references, k=10, per_query=False):
        run = _by_query(predictions, "scores", "predictions")
        qrels = _by_query(references, "relevance", "references")
        values = ndcg_at_k(run, qrels, k)
        result = {f"ndcg_at_{k}": sum(values.values()) / len(values)}
        if per_query:
            result["per_query"] = values
        return result
