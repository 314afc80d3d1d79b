"""Check fields of M2BertConfig before anything is trained, read or built for it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from m2bert.files import read_json
from m2bert.terminal import nearest

ALONE = "m2bert.train._configuration_alone"


def check_model(settings: dict, lengths: dict[str, int | None]):
    """Raise ValueError for a model that cannot be made, or that texts are too long for.

    Args:
        settings: the section `model`.
        lengths: the configuration's lengths in tokens, by key; None is as long as another.
    """
    for section in ("architecture", "new_model"):
        check_fields(settings[section], f"model.{section}")
    config_class = _config_class()
    stored = settings["new_model"]
    if settings["path"] is not None:
        stored = read_json(Path(settings["path"]) / "config.json")
    from huggingface_hub.errors import StrictDataclassError

    try:
        config = config_class(**stored | settings["architecture"])
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"{_named(settings, str(error))}: {' '.join(str(error).split())}") from error
    longest = config.max_position_embeddings
    for key, tokens in lengths.items():
        if tokens is not None and tokens > longest:
            raise ValueError(f"{key}={tokens} exceeds the model's max_position_embeddings={longest}; lower {key}")


def check_fields(fields: dict, section: str):
    """Raise ValueError for a name that is no field of M2BertConfig; the configuration itself would keep it unread."""
    known = _config_class().__dataclass_fields__
    for name in fields:
        if name not in known:
            raise ValueError(f"{section}.{name} is no field of M2BertConfig{nearest(name, known)}")


def _named(settings: dict, message: str) -> str:
    """Return the key that a message of M2BertConfig is about, or where it may be."""
    sections = ("architecture",) if settings["path"] else ("architecture", "new_model")
    names = [(section, name) for section in sections for name in settings[section]]
    found = [f"model.{section}.{name}" for section, name in names if f"'{name}'" in message or f"{name}=" in message]
    return found[0] if found else settings["path"] or "model.new_model"


def _config_class() -> type:
    """Return M2BertConfig. Its file is loaded alone where the model is not imported yet: that takes half the time."""
    if "modeling_m2bert" in sys.modules:
        from modeling_m2bert import M2BertConfig

        return M2BertConfig
    if ALONE not in sys.modules:
        folder = importlib.util.find_spec("modeling_m2bert").submodule_search_locations[0]
        spec = importlib.util.spec_from_file_location(ALONE, Path(folder) / "configuration_m2bert.py")
        module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[ALONE] = module
    return sys.modules[ALONE].M2BertConfig
