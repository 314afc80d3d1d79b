"""The text of a mail, and what its header says."""

import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

from .files import open_packed
from .html import visible_text


def read_mail(path: Path) -> tuple[str, dict[str, str]]:
    """Return subject and text of a mail, its HTML if it has no text; and title, from, to, cc, date, attachments.

    Attachments are named, not read. Raises ValueError naming the file.
    """
    with open_packed(path) as file:
        mail = message_from_bytes(file.read(), policy=policy.default)
    if not any(name in mail for name in ("from", "to", "subject", "date")):
        raise ValueError(f"{path}: damaged: no header of a mail; save the mail again")
    try:
        return _described(mail)
    except Exception as error:  # on damaged mails, `email` raises whatever its code runs into
        problem = f"{type(error).__name__} {' '.join(str(error).split())}"
        raise ValueError(f"{path}: damaged: no valid mail ({problem}); save the mail again") from error


def _described(mail: Any) -> tuple[str, dict[str, str]]:
    texts, others = [mail.get("subject", "")], []
    for part in _leaves(mail):
        if part.get_filename() or part.get_content_type() not in ("text/plain", "text/html"):
            others.append(part.get_filename() or part.get_content_type())
        else:
            texts.append(_text_of(part))
    known = {"title": texts[0], **{name: mail.get(name, "") for name in ("from", "to", "cc")}}
    known["date"] = str(getattr(mail["date"], "datetime", None) or "")[:10]
    known["attachments"] = ", ".join(others)
    texts = [text.encode("utf-8", "replace").decode().strip() for text in texts]
    return "\n".join(filter(None, texts)), known


def _leaves(part: Any) -> Iterator[Any]:
    """Yield the parts of a mail that hold something; of alternatives the text, or the HTML if that is blank."""
    if part.get_content_type() == "multipart/alternative":
        bodies = [body for body in (part.get_body((kind,)) for kind in ("plain", "html")) if body is not None]
        yield from [body for body in bodies if _text_of(body).strip()][:1]
    elif part.get_content_maintype() == "multipart":
        for inner in part.iter_parts():
            yield from _leaves(inner)
    else:
        yield part


def _text_of(part: Any) -> str:
    try:
        text = part.get_content().replace("\r\n", "\n")
    except LookupError:  # a character set that Python does not know
        text = part.get_payload(decode=True).decode("utf-8", "replace")
    if part.get_param("format") == "flowed":  # RFC 3676: a space at the end of a line continues it
        text = re.sub(r"(?<!^--) \n", " ", text, flags=re.MULTILINE)
    return visible_text(text) if part.get_content_type() == "text/html" else text
