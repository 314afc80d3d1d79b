"""Loading sentence-transformers models: whose code may run, and whether all weights are there."""

import re
from pathlib import Path

from safetensors import safe_open

from m2bert.model_files import check_code_files, check_model_files
from m2bert.terminal import one_line

from ..tasks.from_hub import hub_or_cache

SETTINGS = ("modules.json", "config.json", "adapter_config.json")  # a model folder has one of them


def load_model(name: str, device: str | None = None):
    """Load a `SentenceTransformer` from a folder, a Hub id, or a Hub id at a commit (`org/name@` and 40 hexadecimal
    digits).

    A folder may bring its own code; a Hub id only with its commit, for what that holds cannot change. If the Hub does
    not answer within seconds, the cache alone is read.

    Raises:
        ValueError: there is no such model; it needs code of its own that may not run; a settings file is not of its
            form; a folder lacks weights; or loading fails otherwise, and the error gives the cause.
    """
    folder = Path(name)
    if folder.is_dir():
        if not any((folder / settings).is_file() for settings in SETTINGS):
            raise ValueError(f"encoder {name!r} is no model folder: it has none of {', '.join(SETTINGS)}")
        check_code_files(folder)
        check_model_files(folder)
        model = _load(name, name, device, None, trusted=True)
        check_tensors(folder, model[0])
        return model
    if name.count("/") != 1:
        raise ValueError(f"encoder {name!r} is no folder; give a model folder, or a Hub id as org/name")
    pinned = re.fullmatch("(.+)@([0-9a-f]{40})", name)
    repository, revision = pinned.groups() if pinned else (name, None)
    with hub_or_cache(repository, revision) as silent:
        return _load(name, repository, device, revision, pinned is not None, silent)


def _load(name: str, path: str, device: str | None, revision: str | None, trusted: bool, silent: str = ""):
    """Return the model; `silent` is why the Hub does not answer."""
    from sentence_transformers import SentenceTransformer  # slow, and no baseline needs it
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading weights, which takes no time
    try:
        model = SentenceTransformer(path, device=device, revision=revision, trust_remote_code=trusted)
    except Exception as error:  # other people's files, read by other people's code
        if "trust_remote_code" in str(error) and not trusted:
            raise ValueError(
                f"encoder {name!r} brings code of its own; read it, then name the commit that you read, as in "
                f"{name}@COMMIT with all 40 digits"
            ) from error
        if silent:
            raise ValueError(
                f"encoder {name!r} is no folder and cannot be loaded from the cache, and the Hub does not answer "
                f"({silent}); go online, or give a model folder"
            ) from error
        raise ValueError(
            f"encoder {name!r} cannot be loaded ({type(error).__name__}: {one_line(error)}); mend the model, or name "
            "another"
        ) from error
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(
            f"encoder {name!r}: its first module, {type(model[0]).__name__}, reads no text; mend modules.json"
        )
    if len(model) == 1 and hasattr(model[0], "modality_config") and not pools_itself(model[0]):
        raise ValueError(f"encoder {name!r} has no module that makes one vector of its tokens'; mend modules.json")
    return model


def check_tensors(folder: Path, transformer) -> None:
    """Refuse a folder whose safetensors do not hold what its model reads: transformers would fill the gap at random.

    A pooler may be missing where sentence-transformers pools by itself, a folder of another class than the one that
    was loaded may hold that class's head, and older folders hold tables that are made anew (`position_ids`).

    Args:
        transformer: the first module of the sentence-transformers model.

    Raises:
        ValueError: tensors are missing or unexpected.
    """
    stored = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "np") as tensors:
            stored |= set(tensors.keys())
    model = getattr(transformer, "model", None)
    if not stored or model is None:
        return
    expected = set(model.state_dict())
    without_prefix = stored | {name.split(".", 1)[-1] for name in stored}  # of a model with a head, `bert.` or `model.`
    missing = {
        name for name in expected - without_prefix if pools_itself(transformer) or not name.startswith("pooler.")
    }
    same_class = type(model).__name__ in (model.config.architectures or [])
    unexpected = stored - expected - {name for name, _ in model.named_buffers()} if same_class else set()
    for what, names in (("lacks", missing), ("has, unexpectedly,", unexpected)):
        if names:
            raise ValueError(f"encoder {str(folder)!r} {what} {', '.join(sorted(names))}; save the whole model again")


def pools_itself(transformer) -> bool:
    """Return whether the transformer gives a text's vector, not those of its tokens."""
    return getattr(transformer, "module_output_name", None) == "sentence_embedding"
