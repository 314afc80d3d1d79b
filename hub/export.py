"""From a checkpoint (of training, or saved by sentence-transformers) to a complete Hub folder."""

import json
from pathlib import Path

import yaml
from huggingface_hub import eval_result_entries_to_yaml

from .about import About, read_about
from .checkpoint import load_checkpoint, load_tokenizer
from .folder import check_apart, check_output, write_folder
from .model_card import Card
from .private import public_record
from .repo_id import check_repo_id
from .scores import Scores, leaderboard_entries, read_scores
from .sentence_files import read_sentence_files

RECORDS = ("training.json", "conversion.json")  # how a model was made
LEADERBOARD = ".eval_results/m2bert.yaml"


def export_checkpoint(
    model_dir: str | Path,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    repository: str | None = None,
    results: list[Path] | None = None,
    about: Path | None = None,
) -> Path:
    """Write the Hub folder of a checkpoint; see `write_folder`. Taken over from the checkpoint: the records of its
    making, and, where sentence-transformers saved it, prompts, maximum length and a trained Dense layer.

    Args:
        repository: `org/name` for the card, where that is known.
        results: files of `m2bert eval` with scores of this very checkpoint, for the card and `.eval_results/`.
        about: YAML file with what else the card should say, see `read_about`.

    Raises:
        ValueError: see `load_checkpoint`, `read_sentence_files`, `read_scores`, `read_about` and `write_folder`; or
            output_dir holds what is read, or the repository has no valid name.
    """
    check_apart(check_output(output_dir, overwrite), [Path(model_dir), *(results or []), *([about] if about else [])])
    if repository is not None:
        check_repo_id(repository)
    said = read_about(about) if about else About()
    scores = read_scores(results or [], Path(model_dir))
    records = {
        name: json.dumps(public_record(name, text), indent=2) + "\n"
        for name, text in read_records(Path(model_dir)).items()
    }
    model = load_checkpoint(model_dir)
    return write_folder(
        model,
        load_tokenizer(model_dir),
        output_dir,
        overwrite=overwrite,
        settings=read_sentence_files(model, Path(model_dir)),
        card=Card(repository=repository, about=said, scores=scores),
        extra_files=records | leaderboard_file(scores),
    )


def read_records(folder: Path, names: tuple[str, ...] = RECORDS) -> dict[str, str]:
    """The text of the records that a folder has, by their names."""
    return {name: (folder / name).read_text(encoding="utf-8") for name in names if (folder / name).is_file()}


def leaderboard_file(scores: Scores) -> dict[str, str]:
    """The file of scores on the Hub's own data sets, where there are any."""
    entries = leaderboard_entries(scores)
    return {LEADERBOARD: yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)} if entries else {}
