"""From a checkpoint (of training, or saved by sentence-transformers) to a complete Hub folder."""

from pathlib import Path

from .checkpoint import load_checkpoint, load_tokenizer
from .folder import check_output, write_folder
from .sentence_files import read_sentence_files


def export_checkpoint(model_dir: str | Path, output_dir: str | Path, *, overwrite: bool = False) -> Path:
    """Write the Hub folder of a checkpoint; see `write_folder`. Prompts, maximum length, and a Dense layer that
    sentence-transformers has trained on top of the model are taken over from the checkpoint.

    Raises:
        ValueError: see `load_checkpoint`, `read_sentence_files` and `write_folder`.
    """
    check_output(output_dir, overwrite)
    model = load_checkpoint(model_dir)
    settings = read_sentence_files(model, Path(model_dir))
    return write_folder(model, load_tokenizer(model_dir), output_dir, overwrite=overwrite, settings=settings)
