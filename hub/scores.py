"""Read the scores of a model card from the files that `m2bert eval` writes.

A card shows only scores that were measured on exactly its model and that state their origin.
"""

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


class TracedScore(Retrieval):
    """A score of `m2bert eval` that states its origin: where the data come from, and which versions measured it."""

    source: str = Field(min_length=1)
    versions: dict[str, str] = Field(min_length=1)


class ModelScore(TracedScore):
    """A score of the card's model. docs/evaluation.md explains the fields."""

    claim: Literal["zero-shot", "fine-tuned"]
    trained_on: Some[str]
    device: str
    dtype: str
    model_fingerprint: str
    vectors_per_document: float
    seen_share: Share

    @model_validator(mode="after")
    def _refuse_training_data(self):
        """Raise ValueError if the model was trained on the split; `trained_on` holds entries like "qmsum (train)"."""
        # With distractors, a task is called "NAME +COUNT".
        if {f"{task} ({self.split})" for task in (self.task, self.task.split(" ")[0])} & set(self.trained_on):
            raise ValueError(f"split={self.split!r} is one that the model was trained on")
        return self


@dataclass(frozen=True)
class Scores:
    """Records of `m2bert eval` for a card (docs/evaluation.md lists their fields)."""

    own: list[dict] = field(default_factory=list)  # the model's, one for each task and policy; no hybrids
    masked: list[dict] = field(default_factory=list)  # those of the same model with padding="masked"
    bm25: dict[str, dict] = field(default_factory=dict)  # {fingerprint of the data: BM25's}


def read_scores(files: list[Path], model_dir: Path) -> Scores:
    """Return the scores of the model in `model_dir` from result files.

    Raises:
        ValueError: a file is not a result file; no score was measured on exactly these weights, settings and tokenizer;
            a score does not state its origin; or the files hold two different scores for the same task and policy.
    """
    if not files:
        return Scores()
    records = [record for file in files for record in read_results(Path(file)) if isinstance(record, dict)]
    ranked = [record for record in records if record.get("kind") == "retrieval" and not record.get("hybrid")]
    digests, masked_digests = model_files(model_dir), _masked_digests(model_dir)
    # An adapter has none. Scores of a checkpoint without one were measured with another pooling than its export has.
    if not (model_dir / "modules.json").is_file():
        raise ValueError(f"{model_dir} has no modules.json; export it, evaluate that, and export that with --results")
    own = [record for record in ranked if record.get("model_files") == digests]
    if not own:
        measured = [record["model_files"] for record in ranked if isinstance(record.get("model_files"), dict)]
        differences = [_differing(each, digests) for each in measured]
        smallest = ", ".join(min(differences, key=len, default=["all, or is not stated"]))
        raise ValueError(
            f"results {', '.join(map(str, files))} hold no score of {model_dir}: what was measured differs in "
            f"{smallest}; run `m2bert eval --encoder {model_dir}`"
        )
    masked = [record for record in ranked if masked_digests and record.get("model_files") == digests | masked_digests]
    fingerprints = [record.get("data_fingerprint") for record in own]
    of_bm25 = [record for record in ranked if record.get("system") == "bm25"]
    bm25 = [record for record in of_bm25 if record.get("data_fingerprint") in fingerprints]
    for schema, chosen in ((ModelScore, own + masked), (TracedScore, bm25)):
        for record in chosen:
            name = f"the score of {record.get('system')!r} on {record.get('task')!r}"
            checked(schema, record, f"{name} (a card needs its origin: `trained_on` in m2bert eval --config)")
    bm25_by_data = {record["data_fingerprint"]: record for record in bm25}
    return Scores(_without_repetition(own), _without_repetition(masked), bm25_by_data)


def _differing(files: dict[str, str], others: dict[str, str]) -> list[str]:
    """Return the names of files whose digests differ, or that only one side has."""
    return sorted(name for name in files.keys() | others.keys() if files.get(name) != others.get(name))


def model_index(scores: Scores) -> list[EvalResult]:
    """Return the scores in points (0 to 100) in the form of the Hub's `model-index`.

    A record without a revision is of data that are not on the Hub: the task's name stands for the data set.
    """
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
    """Return {file name: text} of the file for the Hub's leaderboards; empty if no data set is on the Hub."""
    entries = []
    for record in scores.own:
        if not record.get("revision"):
            continue
        # With two revisions, queries and documents are two data sets, and that of the documents is the benchmark.
        has_two_data_sets = "," in record["revision"]
        low, high = map(_points, record["interval_95"])
        entries.append(
            EvalResultEntry(
                dataset_id=f"{record['source']}-Documents" if has_two_data_sets else record["source"],
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


def _masked_digests(model_dir: Path) -> dict[str, str]:
    """Return {file name: digest} of the two files that `write_folder` would write differently with padding="masked".

    Returns an empty dict for a model whose padding is not "visible".
    """
    if read_json(model_dir / CONFIG).get("padding") != "visible" or not (model_dir / SENTENCE_CONFIG).is_file():
        return {}
    config = read_text(model_dir / CONFIG).replace('"padding": "visible"', '"padding": "masked"')
    settings = read_json(model_dir / SENTENCE_CONFIG)
    settings.pop("processing_kwargs", None)
    texts = {CONFIG: config, SENTENCE_CONFIG: json.dumps(settings, indent=2) + "\n"}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _without_repetition(records: list[dict]) -> list[dict]:
    """Return one record for each task, data and policy. Raises ValueError if two of them have different scores."""
    kept: dict[tuple, dict] = {}
    for record in records:
        key = record["task"], record["split"], record["data_fingerprint"], record["policy"]
        if kept.setdefault(key, record)["ndcg_at_10"] != record["ndcg_at_10"]:
            raise ValueError(
                f"results hold two scores of task {record['task']!r} under policy {record['policy']!r}: "
                f"{kept[key]['ndcg_at_10']} and {record['ndcg_at_10']}; leave a file out"
            )
    return list(kept.values())
