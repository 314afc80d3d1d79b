"""Scores for a model card, from the files that `m2bert eval` writes: of this very model, none without its origin."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from pydantic import Field, model_validator

from m2bert.eval.encoders.fingerprint import model_files
from m2bert.files import format_yaml, read_json, read_text
from m2bert.records import Retrieval, Share, Some, read_results
from m2bert.schema import checked

CONFIG, SENTENCE_CONFIG = "config.json", "sentence_bert_config.json"
LEADERBOARD = ".eval_results/m2bert.yaml"


class OnCard(Retrieval):
    """A score of `m2bert eval` that states its origin, as every number on a card does."""

    source: str = Field(min_length=1)
    versions: dict[str, str] = Field(min_length=1)


class OwnScore(OnCard):
    """A score of the card's model."""

    claim: Literal["zero-shot", "fine-tuned"]
    trained_on: Some[str]
    device: str
    dtype: str
    model_fingerprint: str
    vectors_per_document: float
    seen_share: Share

    @model_validator(mode="after")
    def _not_of_training_data(self):
        if {f"{task} ({self.split})" for task in (self.task, self.task.split(" ")[0])} & set(self.trained_on):
            raise ValueError(f"split={self.split!r} is one that the model was trained on")
        return self


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
    records = [record for file in files for record in read_results(Path(file)) if isinstance(record, dict)]
    ranked = [record for record in records if record.get("kind") == "retrieval" and not record.get("hybrid")]
    present, twin = model_files(model_dir), _masked_twin(model_dir)
    own = [record for record in ranked if record.get("model_files") == present]
    exported = (model_dir / "modules.json").is_file()
    if not own or not exported:
        measured = [record["model_files"] for record in ranked if isinstance(record.get("model_files"), dict)]
        others = [sorted(n for n in each.keys() | present.keys() if each.get(n) != present.get(n)) for each in measured]
        closest = ", ".join(min(others, key=len, default=["all, or is not stated"]))
        raise ValueError(
            f"results {', '.join(map(str, files))} hold no score of {model_dir}: what was measured differs in "
            f"{closest}; run `m2bert eval --encoder {model_dir}`"
            if exported  # else it was measured with another pooling than an export has, or it is an adapter
            else f"{model_dir} has no modules.json; export it, evaluate that, and export that with --results"
        )
    masked = [record for record in ranked if twin and record.get("model_files") == present | twin]
    fingerprints = [record.get("data_fingerprint") for record in own]
    bm25 = [r for r in ranked if r.get("system") == "bm25" and r.get("data_fingerprint") in fingerprints]
    for schema, found in ((OwnScore, own + masked), (OnCard, bm25)):
        for record in found:
            name = f"the score of {record.get('system')!r} on {record.get('task')!r}"
            checked(schema, record, f"{name} (a card needs its origin: `trained_on` in m2bert eval --config)")
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


def leaderboard_file(scores: Scores) -> dict[str, str]:
    """Return the file of the scores on data sets of the Hub by its name, if there are any."""
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
    return {LEADERBOARD: format_yaml(eval_result_entries_to_yaml(entries))} if entries else {}


def _points(score: float) -> float:
    return round(100 * score, 2)


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
