"""What a record of a run must not tell the world: where its maker keeps files, and tokens."""

import re

from m2bert.files import parse_json

# A path that begins at a root, a home or a parent folder; what stands in a URL or in org/name is none.
PATH = re.compile(r"(?<![\w.~:/-])(?:file://)?(?:~|\.{1,2}(?=/))?(?:/[^\s/'\"=,;:]+)+/?")
TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")


def without_private(value):
    """Return plain JSON with such paths cut to their last part and tokens of the Hub masked, in values and in keys."""
    if isinstance(value, dict):
        return {without_private(key): without_private(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_private(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return TOKEN.sub("hf_...", PATH.sub(lambda path: path[0].rstrip("/").rpartition("/")[2], value))


def public_record(name: str, text: str) -> dict:
    """Return the JSON object of a record (`name` is its file) without what is private.

    Raises:
        ValueError: it is no JSON object.
    """
    record = parse_json(text, name)
    if not isinstance(record, dict):
        raise ValueError(f"{name} holds no JSON object; remove it or write it again")
    try:
        return without_private(record)
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply for a record; remove it or write it again") from error
