"""From a checkpoint (of training, or saved by sentence-transformers) to a complete Hub folder."""

from pathlib import Path

from .checkpoint import load_checkpoint, load_tokenizer
from .folder import check_output, write_folder
from .sentence_files import read_sentence_files


def export_checkpoint(model_dir: str | Path, output_dir: str | Path, *, overwrite: bool = False) -> Path:
    """Write the Hub folder of a checkpoint; see `write_folder`. Taken over from the checkpoint: the record of its
    training, and, where sentence-transformers saved it, prompts, maximum length and a trained Dense layer.

    Raises:
        ValueError: see `load_checkpoint`, `read_sentence_files` and `write_folder`; or output_dir holds model_dir.
    """
    output = check_output(output_dir, overwrite)
    if output in Path(model_dir).resolve().parents:
        raise ValueError(f"output {output} holds the checkpoint {model_dir} itself; name another folder")
    model = load_checkpoint(model_dir)
    settings = read_sentence_files(model, Path(model_dir))
    record = training_record(Path(model_dir))
    tokenizer = load_tokenizer(model_dir)
    return write_folder(model, tokenizer, output_dir, overwrite=overwrite, settings=settings, extra_files=record)


def training_record(folder: Path) -> dict[str, str]:
    """The text of `training.json`, by its name, where a folder has one."""
    record = folder / "training.json"
    return {record.name: record.read_text()} if record.is_file() else {}
