"""Run configuration: one YAML file per run, dotted overrides on the command line, unknown keys refused.

The small default file of an entry point holds every key, with a comment on what it means; `settings` holds what each
key takes. Another file names only what differs, from the default or from the file it `extends`. The free-form sections
hold fields of M2BertConfig, which `model_settings` checks.
"""

from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from m2bert import files as readers
from m2bert.schema import checked
from m2bert.terminal import nearest

from .settings import MlmSettings, OplSettings, check_together

FREE_FORM = ("architecture", "new_model")
SCHEMAS = {"mlm-small.yaml": MlmSettings, "opl-small.yaml": OplSettings}


def load_config(default_name: str, argv: list[str]) -> dict[str, Any]:
    """Return the configuration of a run. Needs no torch, but for a dry run.

    Args:
        default_name: file in `configs/` that holds every key.
        argv: `[--config FILE] [--dry-run] [section.key=value ...]`; FILE is a path, or a name in `configs/`. With
            `--dry-run` the run is scaled down to two steps on stand-in data (`dry_run.scale_down`).

    Raises:
        ValueError: an unknown key (with the nearest known one), a value that its key does not take, settings that
            exclude one another, an unreadable argument or file.
    """
    config, default = read_yaml(default_name), read_yaml(default_name)
    arguments = [argument for argument in argv if argument != "--dry-run"]
    while arguments:
        argument = arguments.pop(0)
        if argument == "--config":
            if not arguments:
                raise ValueError("--config needs a file name")
            for content in read_chain(name := arguments.pop(0)):
                lay_over(config, content, default, f" in {name}")
        elif "=" in argument and not argument.startswith("-"):
            key, value = argument.split("=", 1)
            nested = readers.parse_yaml(value, f"argument {argument!r}")
            for part in reversed(key.split(".")):
                nested = {part: nested}
            lay_over(config, nested, default)
        else:
            raise ValueError(f"argument {argument!r} is not understood; use --config FILE and section.key=value")
    settings = checked(SCHEMAS[default_name], config, "configuration")
    check_together(settings)
    config = settings.model_dump()
    if "--dry-run" in argv:
        from .dry_run import scale_down

        return scale_down(config)
    return config


def read_chain(name: str) -> list[dict[str, Any]]:
    """Return a YAML file and, before it, the files it extends: named by their place beside it, by path, or among the
    shipped.

    Raises:
        ValueError: a file extends itself, directly or not, or something that is no name; or see read_yaml.
    """
    chain, names = [], []
    while name is not None:
        if name in names:
            circle = " -> ".join([*names, name])
            raise ValueError(f"configuration {name} extends itself ({circle}); remove one `extends`")
        names.append(name)
        chain.append(read_yaml(name))
        base = chain[-1].pop("extends", None)
        if not isinstance(base, str | None):
            raise ValueError(f"configuration {name}: extends is {base!r}, and takes the name of a file")
        beside = Path(name).parent / base if base else None
        name = str(beside) if beside is not None and beside.is_file() else base
    return chain[::-1]


def read_yaml(name: str) -> dict[str, Any]:
    """Read a YAML file by path, or by name among the shipped configurations."""
    if Path(name).is_file():
        return readers.read_yaml(name)
    shipped = files("m2bert.train").joinpath("configs")
    file = shipped.joinpath(name if name.endswith(".yaml") else f"{name}.yaml")
    if not file.is_file():
        known = [path.name.removesuffix(".yaml") for path in shipped.iterdir()]
        raise ValueError(
            f"configuration {name!r} is neither a file nor one of the shipped configurations{nearest(name, known)}"
        )
    return readers.read_yaml(file)


def lay_over(config: dict, update: dict, default: dict, where: str = ""):
    """`merge` a whole file or argument. Steps unset epochs, which would replace them: what comes last holds."""
    merge(config, update, default, where=where)
    if "steps" in update and "epochs" in default and "epochs" not in update:
        config["epochs"] = None


def merge(config: dict, update: dict, default: dict, prefix: str = "", where: str = ""):
    """Lay `update` over `config` in place. Raises ValueError for a key that the default lacks."""
    for key, value in update.items():
        name = f"{prefix}{key}"
        if key not in default:
            known = [prefix + known for known in default]
            hint = nearest(name, known) or f"; known: {', '.join(known)}"
            raise ValueError(f"unknown configuration key {name!r}{where}{hint}")
        if not isinstance(default[key], dict):
            config[key] = value
        elif not isinstance(value, dict):
            raise ValueError(f"configuration key {name!r}{where} is a section, not a value ({value!r})")
        elif key in FREE_FORM:
            config[key].update(value)
        else:
            merge(config[key], value, default[key], name + ".", where)


def namespace(config: dict) -> SimpleNamespace:
    """Return the configuration with attribute access; free-form sections stay dictionaries."""
    return SimpleNamespace(
        **{
            key: namespace(value) if isinstance(value, dict) and key not in FREE_FORM else value
            for key, value in config.items()
        }
    )


def to_dict(settings: SimpleNamespace) -> dict:
    """Return the dictionary of a namespace."""
    return {
        key: to_dict(value) if isinstance(value, SimpleNamespace) else value for key, value in vars(settings).items()
    }
