"""Scores for a model card, from the files that `m2bert eval` writes: of this very model, none without its origin."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry

from m2bert.eval.encoders.fingerprint import model_files
from m2bert.files import read_json, read_text
from m2bert.records import check_record, read_results

CONFIG, SENTENCE_CONFIG = "config.json", "sentence_bert_config.json"
CLAIMS = ("zero-shot", "fine-tuned")
ORIGIN = ("source", "data_fingerprint", "date", "versions")  # of every score on a card
ORIGIN_OF_A_MODEL = ("trained_on", "device", "dtype", "model_fingerprint", "vectors_per_document", "seen_share")


@dataclass(frozen=True)
class Scores:
    """Records of `m2bert eval` (docs/evaluation.md lists their fields)."""

    own: list[dict] = field(default_factory=list)  # of the model, one for each task and policy, without hybrids
    masked: list[dict] = field(default_factory=list)  # of the model that differs in padding="masked" alone
    bm25: dict[str, dict] = field(default_factory=dict)  # of BM25, by the fingerprint of the data


def read_scores(files: list[Path], model_dir: Path) -> Scores:
    """Return the scores of the model in `model_dir` from result files.

    Raises:
        ValueError: a file is not a result file, none of its scores was measured on exactly these weights, settings and
            tokenizer, a score does not state its origin, or two differ for the same task and policy.
    """
    if not files:
        return Scores()
    if not (model_dir / "modules.json").is_file():  # measured with another pooling than an export has, or an adapter's
        raise ValueError(f"{model_dir} has no modules.json; export it, evaluate that, and export that with --results")
    records = [record for file in files for record in read_results(Path(file)) if isinstance(record, dict)]
    ranked = [record for record in records if record.get("kind") == "retrieval" and not record.get("hybrid")]
    present, twin = model_files(model_dir), _masked_twin(model_dir)
    own = [record for record in ranked if record.get("model_files") == present]
    if not own:
        measured = [record["model_files"] for record in ranked if isinstance(record.get("model_files"), dict)]
        others = [sorted(n for n in each.keys() | present.keys() if each.get(n) != present.get(n)) for each in measured]
        closest = ", ".join(min(others, key=len, default=["all, or is not stated"]))
        raise ValueError(
            f"results {', '.join(map(str, files))} hold no score of {model_dir}: what was measured differs in "
            f"{closest}; run `m2bert eval --encoder {model_dir}`"
        )
    masked = [record for record in ranked if twin and record.get("model_files") == present | twin]
    fingerprints = [record.get("data_fingerprint") for record in own]
    bm25 = [r for r in ranked if r.get("system") == "bm25" and r.get("data_fingerprint") in fingerprints]
    for record in (*own, *masked, *bm25):
        _check_origin(record)
    bm25 = {record["data_fingerprint"]: record for record in bm25}
    return Scores(_without_repetition(own), _without_repetition(masked), bm25)


def model_index(scores: Scores) -> list[EvalResult]:
    """Return the scores in points (0 to 100) in the form of the Hub's `model-index`."""
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
            metric_value=_points(record["ndcg_at_10"]),
        )
        for record in scores.own
    ]


def leaderboard_entries(scores: Scores) -> list[EvalResultEntry]:
    """Return the scores on data sets of the Hub, in the form of `.eval_results/`."""
    entries = []
    for record in scores.own:
        if not record.get("revision"):
            continue
        pair = "," in record["revision"]  # queries and documents are two data sets; the documents are the benchmark
        low, high = map(_points, record["interval_95"])
        entries.append(
            EvalResultEntry(
                dataset_id=f"{record['source']}-Documents" if pair else record["source"],
                dataset_revision=record["revision"].split(",")[-1],
                task_id=record["task"],
                value=_points(record["ndcg_at_10"]),
                date=record["date"],
                notes=f"nDCG@10, {record['split']}, {record['policy']}, 95 % interval {low} to {high}, "
                f"{record['claim']}, data {record['data_fingerprint'][:12]}",
            )
        )
    return entries


def _points(score: float) -> float:
    return round(100 * score, 2)


def _check_origin(record: dict):
    """Raise ValueError if a record is malformed, does not say what was measured on what, or measures training data."""
    name = f"the score of {record.get('system')!r} on {record.get('task')!r}"
    is_model = record.get("system") != "bm25"
    needed = (*ORIGIN, *(ORIGIN_OF_A_MODEL if is_model else ()))
    missing = [key for key in needed if record.get(key) in (None, "", {}, [])]
    if missing or (is_model and record.get("claim") not in CLAIMS):
        raise ValueError(
            f"{name} has no {', '.join(missing) or 'claim'}; no number stands on a card without its origin; evaluate "
            "with `trained_on` in a configuration (m2bert eval --config)"
        )
    check_record(record, name)
    scored = {f"{task} ({record['split']})" for task in (record["task"], record["task"].split(" ")[0])}
    if is_model and scored & set(record["trained_on"]):
        raise ValueError(f"{name} is of the split {record['split']!r} that the model was trained on")


def _masked_twin(model_dir: Path) -> dict[str, str]:
    """Return the digests of the two files in which `write_folder` makes the same model with padding="masked" differ."""
    if read_json(model_dir / CONFIG).get("padding") != "visible" or not (model_dir / SENTENCE_CONFIG).is_file():
        return {}
    config = read_text(model_dir / CONFIG).replace('"padding": "visible"', '"padding": "masked"')
    settings = read_json(model_dir / SENTENCE_CONFIG)
    settings.pop("processing_kwargs", None)
    texts = {CONFIG: config, SENTENCE_CONFIG: json.dumps(settings, indent=2) + "\n"}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _without_repetition(records: list[dict]) -> list[dict]:
    found: dict[tuple, dict] = {}
    for record in records:
        key = record["task"], record["split"], record["data_fingerprint"], record["policy"]
        if found.setdefault(key, record)["ndcg_at_10"] != record["ndcg_at_10"]:
            raise ValueError(
                f"results hold two scores of task {record['task']!r} under policy {record['policy']!r}: "
                f"{found[key]['ndcg_at_10']} and {record['ndcg_at_10']}; leave a file out"
            )
    return list(found.values())
