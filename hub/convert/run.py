"""`m2bert convert`: make a Hub folder of a model of the research code, with a record of what was done and checked."""

import datetime
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

import modeling_m2bert
from m2bert.files import digest, format_yaml, read_json
from m2bert.terminal import shown

from ..checkpoint import check_finite
from ..folder import fill_folder
from ..outputs import check_apart, check_output, whole_folder
from .check import check_parity, compare_paddings
from .names import convert_state_dict
from .source import find_source, find_tokenizer, read_weights, shards

logger = logging.getLogger(__name__)


def convert_source(
    source: str, output_dir: str | Path, *, config_file: str | Path | None = None, tokenizer: str | None = None,
    revision: str | None = None, file: str | None = None, padding: str = "visible", overwrite: bool = False,
) -> str:  # fmt: skip
    """Convert a model of the research code to a Hub folder that holds the record of its conversion.

    Args:
        source, revision, file: see `find_source`.
        config_file: the original's configuration as JSON; by default config.json beside the weights, if there is one.
        tokenizer: see `find_tokenizer`.
        padding: "visible" gives the original's vectors; with "masked" they do not depend on padding.

    Returns:
        A report to print.

    Raises:
        ValueError: anything of this cannot be read, does not fit, or is not the original's model in the end. Nothing
            is written then.
    """
    output = check_output(output_dir, overwrite)
    found = find_source(source, revision, file)
    weights = found.weights
    options_file = Path(config_file) if config_file is not None else found.beside("config.json")
    configuration = read_json(options_file) if options_file else {}
    read = list(dict.fromkeys([weights, *(weights.parent / name for name in shards(weights))]))
    read += [options_file] if options_file else []
    words = [Path(tokenizer)] if tokenizer and Path(tokenizer).exists() else []
    check_apart(output, [*read, *found.folders, *words])
    lacking = [] if options_file else ["config.json (its options are guessed from the tensors; see --config)"]
    lacking += [] if found.beside("README.md") else ["README.md (which may state a license)"]
    if found.cached and lacking:
        logger.warning("%s: of the Hub only the cache is known, which lacks %s", found.name, " and ".join(lacking))

    with whole_folder(output, overwrite) as new:
        state = read_weights(weights)
        with _naming(weights):
            conversion = convert_state_dict(state, configuration)
            check_finite(conversion.tensors, "it")
        tokens, tokenizer_name = find_tokenizer(tokenizer, found, conversion.config)
        model = getattr(modeling_m2bert, conversion.config.architectures[0])(conversion.config).eval()
        model.load_state_dict(conversion.tensors)
        with _naming(weights):
            parity = check_parity(conversion, model)
        record = {
            "source": found.name,
            "revision": found.revision,
            "license": found.license(),
            "files": {
                path.relative_to(found.root).as_posix() if path.is_relative_to(found.root) else path.name: digest(path)
                for path in read
            },
            "tensors": conversion.audit.record(),
            "options": conversion.origins,
            "parity": parity,
            "masked": compare_paddings(model, tokens) if model.base_model.pooler is not None else None,
            "tokenizer": tokenizer_name,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
        model.config.padding = padding
        fill_folder(new, model, tokens, extra_files={"conversion.json": json.dumps(record, indent=2) + "\n"})
    return report(record, model, output)


@contextmanager
def _naming(weights: Path) -> Iterator[None]:
    """Let errors of what is done with weights name their file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error


def report(record: dict, model: PreTrainedModel, folder: Path) -> str:
    """Format the record, the model and where the folder is as YAML for a terminal, long lists as numbers."""
    tensors = {group: len(names) if group == "repeated" else names for group, names in record["tensors"].items()}
    about = {
        "model": f"{type(model).__name__}, padding={model.config.padding}, pooling={model.config.pooling}, "
        f"{model.config.max_position_embeddings} tokens, {model.num_parameters():,} parameters",
        "folder": str(folder),
    }
    return "\n".join(map(shown, format_yaml(record | {"tensors": tensors} | about).splitlines()))
