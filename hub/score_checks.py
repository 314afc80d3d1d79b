"""Whether a score may stand on a card: it says where it comes from, and can be what it says."""

import datetime
import math

# A score's fields and their types; those of a model's are not asked of BM25.
FIELDS = {
    "system": str, "task": str, "split": str, "source": str, "data_fingerprint": str, "ndcg_at_10": float,
    "interval_95": list, "query_scores": dict, "counts": dict, "claim": str, "versions": dict, "date": str,
}  # fmt: skip
MODEL_FIELDS = {
    "policy": str, "trained_on": list, "model_fingerprint": str, "vectors_per_document": float, "seen_share": float,
    "device": str, "dtype": str,
}  # fmt: skip
CLAIMS = ("zero-shot", "fine-tuned")
ROUNDING = 1e-9


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
    for field, kind in (FIELDS | (MODEL_FIELDS if is_model else {})).items():
        _check_field(name, field, record.get(field), kind)
    _check_numbers(name, record)
    if is_model:
        _check_training(name, record)
    try:
        datetime.date.fromisoformat(record["date"])
    except ValueError as error:
        raise ValueError(f"{name} has date={record['date']!r}, which is no date; evaluate again") from error
    if not isinstance(record.get("revision"), str | None):
        raise ValueError(f"{name} has revision={record['revision']!r}, which is no commit; evaluate again")


def _check_field(name: str, field: str, value, kind: type):
    if value in (None, "", [], {}):
        raise ValueError(f"{name} does not say its {field}; a card shows no number without its origin")
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int) and not isinstance(value, bool))
    if not fits or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{name} has {field}={str(value)[:40]!r}, which is no {kind.__name__}; evaluate again")


def _check_numbers(name: str, record: dict):
    for field, count in (("interval_95", 2), ("query_scores", 1)):
        values = record[field] if field == "interval_95" else list(record[field].values())
        for value in values:
            _check_field(name, field, value, float)
        if len(values) < count or not all(0 <= value <= 1 + ROUNDING for value in values):
            raise ValueError(f"{name} has a {field} that is not between 0 and 1; evaluate again")
    score, scores, (low, high) = record["ndcg_at_10"], record["query_scores"].values(), record["interval_95"][:2]
    if abs(score - sum(scores) / len(scores)) > 1e-6 or not low - ROUNDING <= score <= high + ROUNDING:
        raise ValueError(
            f"{name} is {score}, which is not the mean of its queries' scores within its interval {low} to {high}; "
            "evaluate again"
        )
    for field in ("documents", "queries"):
        _check_field(name, f"counts.{field}", record["counts"].get(field), int)
    if not 0 <= record.get("seen_share", 1) <= 1:
        raise ValueError(f"{name} has seen_share={record['seen_share']}, which is no share; evaluate again")


def _check_training(name: str, record: dict):
    """`trained_on` names tasks as `name (split)`."""
    scored = {f"{record['task']} ({record['split']})", f"{record['task'].split(' ')[0]} ({record['split']})"}
    if scored & set(map(str, record["trained_on"])):
        raise ValueError(
            f"{name} is of the split {record['split']!r} that the model was trained on: it measures memory"
        )
