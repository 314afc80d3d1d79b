"""Scores for a model card, from the files that `m2bert eval` writes: of this very model, none without its origin."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, EvalResultEntry

from m2bert.files import digest, read_json, read_text
from m2bert.schema import FOREIGN, Schema, checked

from .score_checks import check_score

# As m2bert.eval.encoders.fingerprint has them; what is made of a model, and how it was made, do not count.
PATTERNS = ("*.safetensors", "*.json", "vocab.txt", "[0-9]*_*/*.safetensors", "[0-9]*_*/*.json")
NOT_THE_MODEL = {"training.json", "conversion.json"}
CONFIG, SENTENCE_CONFIG = "config.json", "sentence_bert_config.json"


class ResultFile(Schema):
    """A file of `m2bert eval`. Its records are of several kinds; `check_score` checks those that are shown."""

    model_config = FOREIGN

    format: Literal[1]
    results: list[dict[str, Any]]


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
            tokenizer, a score does not say where it comes from or cannot be right, or two differ for the same task and
            policy.
    """
    if not files:
        return Scores()
    if not (model_dir / "modules.json").is_file():
        raise ValueError(
            f"{model_dir} has no modules.json, so its scores were measured with another pooling than an export has, or "
            "with another model than an adapter makes; export it, evaluate the export, and export that with --results"
        )
    records = [record for file in files for record in _read(Path(file))]
    ranked = [record for record in records if record.get("kind") == "retrieval" and not record.get("hybrid")]
    present, twin = digests(model_dir), _masked_twin(model_dir)
    own = [record for record in ranked if record.get("model_files") == present]
    if not own:
        raise ValueError(_none_fits(files, ranked, model_dir, present))
    masked = [record for record in ranked if twin and record.get("model_files") == present | twin]
    fingerprints = [record.get("data_fingerprint") for record in own]
    bm25 = [r for r in ranked if r.get("system") == "bm25" and r.get("data_fingerprint") in fingerprints]
    for record in (*own, *masked, *bm25):
        check_score(record)
    bm25 = {record["data_fingerprint"]: record for record in bm25}
    return Scores(_without_repetition(own), _without_repetition(masked), bm25)


def model_index(scores: Scores) -> list[EvalResult]:
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
            metric_value=_points(record["ndcg_at_10"]),
        )
        for record in scores.own
    ]


def leaderboard_entries(scores: Scores) -> list[EvalResultEntry]:
    """The scores on data of the Hub, for `.eval_results/`: that form names a data set there, which local data lack."""
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


def digests(model_dir: Path) -> dict[str, str]:
    """sha256 of every file of weights, settings and tokenizer, by its name in the folder."""
    found = {}
    for path in sorted(path for pattern in PATTERNS for path in model_dir.glob(pattern)):
        if path.is_file() and path.name not in NOT_THE_MODEL:
            found[path.relative_to(model_dir).as_posix()] = digest(path)
    return found


def _points(score: float) -> float:
    return round(100 * score, 2)


def _read(file: Path) -> list[dict]:
    try:
        return checked(ResultFile, read_json(file), str(file)).results
    except ValueError as error:
        raise ValueError(f"results {file} are no result file ({error}); write it with `m2bert eval`") from error


def _masked_twin(model_dir: Path) -> dict[str, str]:
    """Digests of the two files in which `write_folder` makes the same model with padding="masked" differ."""
    if read_json(model_dir / CONFIG).get("padding") != "visible" or not (model_dir / SENTENCE_CONFIG).is_file():
        return {}
    config = read_text(model_dir / CONFIG).replace('"padding": "visible"', '"padding": "masked"')
    settings = read_json(model_dir / SENTENCE_CONFIG)
    settings.pop("processing_kwargs", None)
    texts = {CONFIG: config, SENTENCE_CONFIG: json.dumps(settings, indent=2) + "\n"}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _none_fits(files: list[Path], ranked: list[dict], model_dir: Path, present: dict[str, str]) -> str:
    measured = [record["model_files"] for record in ranked if isinstance(record.get("model_files"), dict)]
    differences = [
        sorted(str(name) for name in each.keys() | present.keys() if each.get(name) != present.get(name))
        for each in measured
    ]
    why = "no score there says on which files of a model it was measured"
    if differences:
        why = f"measured were others (the closest differs in {', '.join(min(differences, key=len))})"
    names = ", ".join(map(str, files))
    return f"results {names} hold no score of {model_dir}: {why}; run `m2bert eval --encoder {model_dir}`"


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
