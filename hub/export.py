"""Export a checkpoint (of training, or saved by sentence-transformers) as a complete Hub folder."""

import json
from pathlib import Path

from huggingface_hub import eval_result_entries_to_yaml

from m2bert.files import format_yaml, read_text

from .card import About, Card, public_record, read_about
from .checkpoint import check_links, load_checkpoint, load_tokenizer
from .folder import check_apart, check_output, fill_folder, whole_folder
from .hub_errors import check_repo_id
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
    """Write the Hub folder of a checkpoint; see `write_folder`. Keep the checkpoint's records of how it was made
    and, if sentence-transformers saved it, prompts, maximum length and a trained Dense layer.

    Args:
        repository: `org/name` for the card, where that is known.
        results: files of `m2bert eval` with scores of this very checkpoint, for the card and `.eval_results/`.
        about: YAML file with what else the card should say, see `read_about`.

    Raises:
        ValueError: see `load_checkpoint`, `read_sentence_files`, `read_scores`, `read_about` and `write_folder`; or
            output_dir holds what is read, or the repository has no valid name.
    """
    output = check_output(output_dir, overwrite)
    check_apart(output, [Path(model_dir), *(results or []), *([about] if about else [])])
    if repository is not None:
        check_repo_id(repository)
    with whole_folder(output, overwrite) as new:
        check_links(Path(model_dir))
        said = read_about(about) if about else About()
        scores = read_scores(results or [], Path(model_dir))
        records = {
            name: json.dumps(public_record(name, text), indent=2) + "\n"
            for name, text in read_records(Path(model_dir)).items()
        }
        model = load_checkpoint(model_dir)
        fill_folder(
            new,
            model,
            load_tokenizer(model_dir),
            settings=read_sentence_files(model, Path(model_dir)),
            card=Card(repository=repository, about=said, scores=scores),
            extra_files=records | leaderboard_file(scores),
        )
    return output


def read_records(folder: Path, names: tuple[str, ...] = RECORDS) -> dict[str, str]:
    """Return the text of the records that a folder has, by their names."""
    return {name: read_text(folder / name) for name in names if (folder / name).is_file()}


def leaderboard_file(scores: Scores) -> dict[str, str]:
    """Return the file of scores on the Hub's own data sets, where there are any."""
    entries = leaderboard_entries(scores)
    return {LEADERBOARD: format_yaml(eval_result_entries_to_yaml(entries))} if entries else {}
