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
        ValueError: names the place (such as `language[0]`), what stands there and what is expected.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])  # why one is missing
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        if first["type"] == "extra_forbidden":
            hint = nearest(first["loc"][-1], _keys_at(schema, first["loc"][:-1]))
            raise ValueError(f"{where}: unknown key {shown(place)!r}{hint}") from error
        if first["type"] == "missing":
            raise ValueError(f"{where}: {shown(place)} is missing") from error
        if first["type"] == "value_error":  # a validator of ours, which says it all
            message = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{where}: {shown(place)}{': ' if place else ''}{message}") from error
        found = shown(repr(first["input"]))
        found = found if len(found) <= 80 else f"{found[:77]}..."
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise ValueError(f"{where}: {shown(place) or 'the value'} is {found}; {message}") from error


def _keys_at(schema: type[Schema], place: Iterable[str | int]) -> list[str]:
    """Return the keys that a mapping within a value may have, or none where several kinds may stand."""
    for part in place:
        if part in schema.model_fields:
            inner = list(_schemas_in(schema.model_fields[part].annotation))
            if len(inner) != 1:
                return []
            schema = inner[0]
    return list(schema.model_fields)


def _schemas_in(annotation: Any) -> Iterable[type[Schema]]:
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        yield annotation
    for part in get_args(annotation):
        yield from _schemas_in(part)
