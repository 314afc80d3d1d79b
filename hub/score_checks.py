"""Whether a score may stand on a card: it says where it comes from, and can be what it says."""

import datetime
from typing import Annotated

from pydantic import AfterValidator, Field

from m2bert.schema import FOREIGN, Schema, checked

CLAIMS = ("zero-shot", "fine-tuned")
ROUNDING = 1e-9


def _date(text: str) -> str:
    datetime.date.fromisoformat(text)
    return text


Text = Annotated[str, Field(min_length=1)]
Ndcg = Annotated[float, Field(ge=0, le=1 + ROUNDING)]


class Counts(Schema):
    """Of a task's texts."""

    model_config = FOREIGN

    documents: int = Field(ge=1)
    queries: int = Field(ge=1)


class Score(Schema):
    """A record of kind "retrieval" of `m2bert eval`, with what is asked of BM25's, too."""

    model_config = FOREIGN

    system: Text
    task: Text
    split: Text
    source: Text
    revision: str | None = None
    data_fingerprint: Text
    ndcg_at_10: Ndcg
    interval_95: list[Ndcg] = Field(min_length=2, max_length=2)
    query_scores: dict[str, Ndcg] = Field(min_length=1)
    counts: Counts
    claim: Text
    versions: dict[str, Text] = Field(min_length=1)
    date: Annotated[str, AfterValidator(_date)]


class ModelScore(Score):
    """The same of a model."""

    policy: Text
    trained_on: list[str]
    model_fingerprint: Text
    vectors_per_document: float
    seen_share: float = Field(ge=0, le=1)
    device: Text
    dtype: Text


def check_score(record: dict):
    """Check a record of kind "retrieval", of a model or of BM25.

    Raises:
        ValueError: it does not say its origin (data, training, device, versions, date), or its numbers contradict each
            other or the range of nDCG; or the model was trained on what it is scored on.
    """
    name = f"the score of {record.get('system')!r} on {record.get('task')!r}"
    is_model = record.get("system") != "bm25"
    if is_model and (record.get("claim") not in CLAIMS or not record.get("trained_on")):
        raise ValueError(
            f"{name} does not say what the model was trained on, so that nobody knows whether it saw the task; "
            "evaluate with `trained_on` in a configuration (m2bert eval --config)"
        )
    try:
        score = checked(ModelScore if is_model else Score, record, name)
    except ValueError as error:
        raise ValueError(f"{error}; a card shows no number without its origin, so evaluate again") from error
    scores, (low, high) = score.query_scores.values(), score.interval_95
    if abs(score.ndcg_at_10 - sum(scores) / len(scores)) > 1e-6 or not (
        low - ROUNDING <= score.ndcg_at_10 <= high + ROUNDING
    ):
        raise ValueError(
            f"{name} is {score.ndcg_at_10}, which is not the mean of its queries' scores within its interval {low} to "
            f"{high}; evaluate again"
        )
    if is_model:
        _check_training(name, score)


def _check_training(name: str, score: ModelScore):
    """`trained_on` names tasks as `name (split)`."""
    scored = {f"{score.task} ({score.split})", f"{score.task.split(' ')[0]} ({score.split})"}
    if scored & set(score.trained_on):
        raise ValueError(f"{name} is of the split {score.split!r} that the model was trained on: it measures memory")
