"""Run configuration: one YAML file per run, dotted overrides on the command line, unknown keys refused.

The small default file of an entry point is its schema: it holds every key, with a comment on what it means. Another
file names only what differs, from the default or from the file it `extends`. The free-form sections hold fields of
M2BertConfig, which `make_model` checks.
"""

import difflib
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from .dry_run import scale_down

FREE_FORM = ("architecture", "new_model")
NULLABLE = ("_lr", "_split")  # endings of keys that null switches off though the schema has a value for them


def load_config(default_name: str, argv: list[str]) -> dict[str, Any]:
    """Configuration of a run.

    Args:
        default_name: file in `configs/` that holds every key.
        argv: `[--config FILE] [--dry-run] [section.key=value ...]`; FILE is a path, or a name in `configs/`. With
            `--dry-run` the run is scaled down to two steps on stand-in data (`dry_run.scale_down`).

    Raises:
        ValueError: an unknown key (with the nearest known one), a value of another type, an unreadable argument.
    """
    config, schema = read_yaml(default_name), read_yaml(default_name)
    arguments = [argument for argument in argv if argument != "--dry-run"]
    while arguments:
        argument = arguments.pop(0)
        if argument == "--config":
            if not arguments:
                raise ValueError("--config needs a file name")
            for content in read_chain(arguments.pop(0)):
                lay_over(config, content, schema)
        elif "=" in argument and not argument.startswith("-"):
            key, value = argument.split("=", 1)
            nested = parse_yaml(value, f"argument {argument!r}")
            for part in reversed(key.split(".")):
                nested = {part: nested}
            lay_over(config, nested, schema)
        else:
            raise ValueError(f"argument {argument!r} is not understood; use --config FILE and section.key=value")
    return scale_down(config) if "--dry-run" in argv else config


def read_chain(name: str) -> list[dict[str, Any]]:
    """A YAML file and, before it, the files it extends: named by their place beside it, by path, or among the shipped.

    Raises:
        ValueError: a file extends itself, directly or not; or see read_yaml.
    """
    chain, names = [], []
    while name is not None:
        if name in names:
            circle = " -> ".join([*names, name])
            raise ValueError(f"configuration {name} extends itself ({circle}); remove one `extends`")
        names.append(name)
        chain.append(read_yaml(name))
        beside, name = Path(name).parent, chain[-1].pop("extends", None)
        if name is not None and (beside / name).is_file():
            name = str(beside / name)
    return chain[::-1]


def read_yaml(name: str) -> dict[str, Any]:
    """A YAML file by path, or by name among the shipped configurations."""
    path = Path(name)
    if not path.is_file():
        shipped = files("m2bert_train").joinpath("configs", name if name.endswith(".yaml") else f"{name}.yaml")
        if not shipped.is_file():
            raise ValueError(f"configuration {name!r} is neither a file nor one of the shipped configurations")
        path = shipped
    content = parse_yaml(path.read_text(), f"configuration {name}")
    if not isinstance(content, dict):
        raise ValueError(f"configuration {name} holds no mapping of keys to values")
    return content


def parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is no valid YAML: {' '.join(str(error).split())}") from error


def lay_over(config: dict, update: dict, schema: dict):
    """`merge` of a whole file or argument. Steps unset epochs, which would replace them: what is said last holds."""
    merge(config, update, schema)
    if "steps" in update and "epochs" in schema and "epochs" not in update:
        config["epochs"] = None


def merge(config: dict, update: dict, schema: dict, prefix: str = ""):
    """Lay `update` over `config` in place; only keys of the schema, only values of the type that they have there. What
    is null in the schema takes any value."""
    for key, value in update.items():
        name = f"{prefix}{key}"
        if key not in schema:
            near = difflib.get_close_matches(str(key), schema, n=1, cutoff=0)
            raise ValueError(f"unknown configuration key {name!r}; the nearest known one is {prefix + near[0]!r}")
        default = schema[key]
        if isinstance(default, dict):
            if not isinstance(value, dict):
                raise ValueError(f"configuration key {name!r} is a section, not a value ({value!r})")
            if key not in FREE_FORM:
                merge(config[key], value, default, name + ".")
            else:
                config[key].update(value)
        elif default is None or (value is None and key.endswith(NULLABLE)) or type(value) is type(default):
            config[key] = value
        elif isinstance(default, float) and is_number(value):
            config[key] = float(value)  # YAML reads 1e-3 as text
        else:
            raise ValueError(f"configuration key {name!r} takes {type(default).__name__}, not {value!r}")


def is_number(value: Any) -> bool:
    """Whether a YAML value can be read as a float."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)


def namespace(config: dict) -> SimpleNamespace:
    """Attribute access; free-form sections stay dictionaries."""
    return SimpleNamespace(
        **{
            key: namespace(value) if isinstance(value, dict) and key not in FREE_FORM else value
            for key, value in config.items()
        }
    )


def to_dict(settings: SimpleNamespace) -> dict:
    """The dictionary of a namespace."""
    return {
        key: to_dict(value) if isinstance(value, SimpleNamespace) else value for key, value in vars(settings).items()
    }
