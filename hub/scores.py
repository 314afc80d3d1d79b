"""Scores for a model card, from the files that `m2bert eval` writes: of this very model, none without its origin."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry

ORIGIN = ("task", "split", "source", "data_fingerprint", "policy", "interval_95", "counts", "claim", "trained_on",
          "model_fingerprint", "vectors_per_document", "seen_share", "device", "dtype", "versions", "date")  # fmt: skip
MAY_DIFFER = {"config.json", "sentence_bert_config.json"}  # between a model and its twin with the other padding


@dataclass(frozen=True)
class Scores:
    """Records of `m2bert eval` (docs/evaluation.md lists their fields).

    Attributes:
        own: of the model, one for each task and policy, without hybrids.
        masked: the same of its twin that differs in padding="masked" alone, where the files hold any.
        bm25: {data_fingerprint: record} of BM25 on the same data.
    """

    own: list[dict] = field(default_factory=list)
    masked: list[dict] = field(default_factory=list)
    bm25: dict[str, dict] = field(default_factory=dict)


def read_scores(files: list[Path], model_dir: Path) -> Scores:
    """What result files say of the model in `model_dir`.

    Raises:
        ValueError: a file is no result file, none of its scores was measured on exactly these weights, settings and
            tokenizer, a score does not say where it comes from, or two differ for the same task and policy.
    """
    records = [record for file in files for record in _read(Path(file))]
    ranked = [record for record in records if record.get("kind") == "retrieval" and not record.get("hybrid")]
    own = [record for record in ranked if not _changed(record, model_dir)]
    if files and not own:
        raise ValueError(_none_fits(files, ranked, model_dir))
    masked = [record for record in ranked if _is_masked_twin(record, model_dir)]
    for record in (*own, *masked):
        _check_origin(record)
    bm25 = {record["data_fingerprint"]: record for record in ranked if record.get("system") == "bm25"}
    return Scores(_without_repetition(own), _without_repetition(masked), bm25)


def model_index(scores: Scores, digits: int = 2) -> list[EvalResult]:
    """The scores in points (0 to 100), as the Hub's `model-index` has them."""
    return [
        EvalResult(
            task_type="retrieval",
            dataset_type=record["source"] if record.get("revision") else record["task"],
            dataset_name=record["task"],
            dataset_split=record["split"],
            dataset_revision=record.get("revision"),
            dataset_args={"fingerprint": record["data_fingerprint"]},
            metric_type="ndcg_at_10",
            metric_name=f"nDCG@10 ({record['policy']})",
            metric_value=round(100 * record["ndcg_at_10"], digits),
        )
        for record in scores.own
    ]


def leaderboard_entries(scores: Scores, digits: int = 2) -> list[EvalResultEntry]:
    """The scores on data of the Hub, for `.eval_results/`: that form names a data set there, which local data lack."""
    entries = []
    for record in scores.own:
        if not record.get("revision"):
            continue
        pair = "," in record["revision"]  # queries and documents are two data sets; the documents are the benchmark
        low, high = (round(100 * bound, digits) for bound in record["interval_95"])
        entries.append(
            EvalResultEntry(
                dataset_id=f"{record['source']}-Documents" if pair else record["source"],
                dataset_revision=record["revision"].split(",")[-1],
                task_id=record["task"],
                value=round(100 * record["ndcg_at_10"], digits),
                date=record["date"],
                notes=f"nDCG@10, {record['split']}, {record['policy']}, 95 % interval {low} to {high}, "
                f"{record['claim']}, data {record['data_fingerprint'][:12]}",
            )
        )
    return entries


def _read(file: Path) -> list[dict]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != 1 or not all(isinstance(record, dict) for record in content["results"]):
            raise ValueError("another format")
        return content["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"results {file} are no result file ({error!r}); write it with `m2bert eval`") from error


def _changed(record: dict, model_dir: Path) -> list[str]:
    """Names of files that are not as they were when the score was measured."""
    measured = record.get("model_files") or {}
    weights = {path.name for path in model_dir.glob("*.safetensors")}
    named = {name: digest for name, digest in measured.items() if _is_inside(name)}
    changed = [name for name, digest in named.items() if _digest(model_dir / name) != digest]
    return sorted({*changed, *(weights - set(named)), *(set(measured) - set(named))}) or (
        [] if weights else ["weights"]
    )


def _is_masked_twin(record: dict, model_dir: Path) -> bool:
    """Whether the record is of the same model but for padding="masked"."""
    changed = _changed(record, model_dir)
    if "config.json" not in changed or not set(changed) <= MAY_DIFFER:
        return False
    twin = (model_dir / "config.json").read_text().replace('"padding": "visible"', '"padding": "masked"')
    return hashlib.sha256(twin.encode()).hexdigest() == record["model_files"]["config.json"]


def _is_inside(name: str) -> bool:
    return bool(re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name))


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _none_fits(files: list[Path], ranked: list[dict], model_dir: Path) -> str:
    with_files = [record for record in ranked if record.get("model_files")]
    closest = min((_changed(record, model_dir) for record in with_files), key=len, default=None)
    why = "no score there says on which files of a model it was measured"
    if closest is not None:
        why = f"measured were others (the closest differs in {', '.join(closest)})"
    names = ", ".join(map(str, files))
    return f"results {names} hold no score of {model_dir}: {why}; run `m2bert eval --encoder {model_dir}`"


def _check_origin(record: dict):
    lacking = [name for name in ORIGIN if record.get(name) in (None, "", [], {})]
    if record.get("claim") in (None, "not stated") or "trained_on" in lacking:
        raise ValueError(
            f"the score of {record.get('system')!r} on {record.get('task')!r} does not say what the model was trained "
            "on, so that nobody knows whether it saw the task; evaluate with `trained_on` in a configuration "
            "(m2bert eval --config)"
        )
    if lacking:
        raise ValueError(
            f"the score of {record.get('system')!r} on {record.get('task')!r} does not say its {', '.join(lacking)}; "
            "a card shows no number without its origin"
        )


def _without_repetition(records: list[dict]) -> list[dict]:
    found: dict[tuple, dict] = {}
    for record in records:
        key = record["task"], record["split"], record["data_fingerprint"], record["policy"]
        if key in found and found[key]["ndcg_at_10"] != record["ndcg_at_10"]:
            raise ValueError(
                f"results hold two scores of task {record['task']!r} under policy {record['policy']!r}: "
                f"{found[key]['ndcg_at_10']} and {record['ndcg_at_10']}; leave a file out"
            )
        found.setdefault(key, record)
    return list(found.values())
