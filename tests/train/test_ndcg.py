"""The torch nDCG against the metric of the evaluation."""

import random

import pytest
import torch

from m2bert.eval.search import score_ranking
from m2bert.train.pairs.ndcg import ndcg_at_k


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_metric_under_many_ties_and_grades(seed):
    generator = random.Random(seed)
    names = [f"d{i}" for i in range(200)] + ["é", "ab", "Z", "d", ""]
    pids = generator.sample(names, generator.randint(1, 40))
    k = generator.choice([1, 3, 10, 100])
    values = [0.0, -0.0, -0.5, 0.1, 0.1 + 1e-12, 0.3]
    scores = torch.tensor([[generator.choice(values) for _ in pids] for _ in range(6)], dtype=torch.float64)
    relevance = torch.tensor([[generator.choice([0, 0, 1, 2]) for _ in pids] for _ in range(6)])
    run = {f"q{i}": dict(zip(pids, row, strict=True)) for i, row in enumerate(scores.tolist())}
    qrels = {f"q{i}": dict(zip(pids, row, strict=True)) for i, row in enumerate(relevance.tolist())}
    expected = list(score_ranking(run, qrels, k).values())
    assert ndcg_at_k(scores, relevance, pids, k).tolist() == pytest.approx(expected, abs=1e-9)


def test_float32_scores_of_an_encoder_equal_the_metric():
    torch.manual_seed(0)
    scores = torch.nn.functional.normalize(torch.randn(20, 8)) @ torch.nn.functional.normalize(torch.randn(300, 8)).T
    relevant = torch.rand(20, 300) < 0.02
    pids = [f"p{i}" for i in range(300)]
    run = {f"q{i}": dict(zip(pids, row, strict=True)) for i, row in enumerate(scores.tolist())}
    qrels = {f"q{i}": {pids[j]: 1 for j in row.nonzero().flatten()} for i, row in enumerate(relevant)}
    expected = list(score_ranking(run, qrels).values())
    assert ndcg_at_k(scores, relevant, pids).tolist() == pytest.approx(expected, abs=1e-9)


def test_bad_input_is_named():
    scores = torch.tensor([[0.5, float("nan")]])
    with pytest.raises(ValueError, match="'b' for query 0 is NaN"):
        ndcg_at_k(scores, torch.ones(1, 2), ["a", "b"])
    with pytest.raises(ValueError, match="k=0"):
        ndcg_at_k(torch.ones(1, 2), torch.ones(1, 2), ["a", "b"], k=0)
