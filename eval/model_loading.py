"""Loading sentence-transformers models: whose code may run, and whether all weights are there."""

import re
from pathlib import Path

from safetensors import safe_open


def load_model(name: str, device: str | None = None):
    """A `SentenceTransformer` from a folder, a Hub id, or a Hub id at a commit (`org/name@` and 40 hexadecimal digits).

    A folder may bring its own code; a Hub id only with its commit, for what that holds cannot change.

    Raises:
        ValueError: there is no such model; it needs code of its own that may not run; or a folder lacks weights.
    """
    from sentence_transformers import SentenceTransformer  # slow, and no baseline needs it
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading weights, which takes no time
    is_folder = Path(name).is_dir()
    pinned = None if is_folder else re.fullmatch("(.+)@([0-9a-f]{40})", name)
    repository, revision = pinned.groups() if pinned else (name, None)
    trusted = is_folder or pinned is not None
    try:
        model = SentenceTransformer(repository, device=device, revision=revision, trust_remote_code=trusted)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error) and not trusted:
            raise ValueError(
                f"encoder {name!r} brings code of its own; read it, then name the commit that you read, as in "
                f"{name}@COMMIT with all 40 digits"
            ) from error
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"encoder {name!r} is no model folder and no Hub model that can be loaded: {reason}"
        ) from error
    if is_folder:
        check_tensors(Path(name), model[0])
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
    """Whether the transformer gives a text's vector, not those of its tokens."""
    return getattr(transformer, "module_output_name", None) == "sentence_embedding"
