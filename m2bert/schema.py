"""Check what JSON and YAML files hold against one description per kind of file."""

from collections.abc import Iterable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from .terminal import nearest, shown


class Schema(BaseModel):
    """Base of the descriptions of our own files: exact types, no other keys, no NaN.

    A subclass that describes another program's file sets `model_config = FOREIGN`, which ignores other keys.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


FOREIGN = ConfigDict(extra="ignore")
S = TypeVar("S", bound=Schema)


def checked(schema: type[S], value: Any, where: str) -> S:
    """Return `value` as an instance of `schema`.

    Args:
        where: names the value in errors, such as the path of its file.

    Raises:
        ValueError: names the place (such as `language[0]`), the value there and what is expected.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])  # why one is missing
        kind, message, parts = first["type"], first["msg"], first["loc"]
        place = shown("".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip("."))
        if kind == "extra_forbidden":
            problem = f"unknown key {place!r}{nearest(parts[-1], _keys_at(schema, parts[:-1]))}"
        elif kind == "missing":
            problem = f"{place} is missing"
        elif kind == "value_error":  # a validator of ours, which says it all
            problem = f"{place}{': ' if place else ''}{message.removeprefix('Value error, ')}"
        else:
            found = shown(repr(first["input"]))
            found = found if len(found) <= 80 else f"{found[:77]}..."
            problem = f"{place or 'the value'} is {found}; {message[:1].lower()}{message[1:]}"
        raise ValueError(f"{where}: {problem}") from error


def _keys_at(schema: type[Schema], place: Iterable[str | int]) -> list[str]:
    """Return the keys that a mapping within a value may have, or none if several kinds are possible."""
    for part in place:
        if part in schema.model_fields:
            kinds = [schema.model_fields[part].annotation]
            for kind in kinds:  # grows by the parts of list[X], X | None, ...
                kinds += get_args(kind)
            inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Schema)]
            if len(inner) != 1:
                return []
            schema = inner[0]
    return list(schema.model_fields)
