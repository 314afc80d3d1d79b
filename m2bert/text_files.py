"""Texts in a folder, one document a file: which files are texts, and what a reader would see of one.

All of it needs no other package. What the format knows beside the text is metadata: title, author, date ...
"""

import logging
import re
import zlib
from collections import Counter
from contextlib import suppress
from html import unescape
from pathlib import Path

from .files import open_packed, visible
from .html import visible_text
from .mail import read_mail

logger = logging.getLogger(__name__)

MARKDOWN, HTML, SUBTITLES, MAIL = (".md", ".markdown"), (".html", ".htm"), (".srt", ".vtt"), (".eml",)
TEXTS = (".txt", ".rst", *MARKDOWN, *HTML, *SUBTITLES, *MAIL)
MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}  # at the beginning of a file
CHARSET = re.compile(rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?(?!utf)([\w.:-]+)""", re.I)


def text_files(folder: Path) -> list[Path]:
    """Return the files below a folder that are texts, sorted; a warning counts visible files of other types."""
    files = [path for path in visible(folder, "**/*") if path.is_file()]
    others = Counter(path.suffix.lower() or "no suffix" for path in files if path.suffix.lower() not in TEXTS)
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        logger.warning("%s: left out for their type: %s; documents are %s", folder, kinds, ", ".join(TEXTS))
    return [path for path in files if path.suffix.lower() in TEXTS]


def read_document(path: Path) -> str:
    """Return the text of a file as a reader sees it; see `read_described`."""
    return read_described(path)[0]


def read_described(path: Path) -> tuple[str, dict[str, str]]:
    """Return the text of a file, and what the format knows beside it. Raises ValueError naming the file.

    Of HTML it is what a browser shows, of subtitles what is said, of a mail subject and text; all else is as written.
    """
    suffix = suffix_of(path)
    if suffix in MAIL:
        return read_mail(path)
    text = read_encoded(path)
    if suffix in SUBTITLES:
        return said(text), {}
    if suffix in HTML:
        title = re.search(r"<title[^>]*>(.*?)</title", text, re.DOTALL | re.IGNORECASE)
        return visible_text(text), {"title": unescape(title[1])} if title else {}
    heading = suffix in MARKDOWN and re.search(r"^#{1,6} +(.+?)[ #]*$", text, re.MULTILINE)
    return text, {"title": heading[1]} if heading else {}


def suffix_of(path: Path) -> str:
    """Return the suffix that tells the format, in lower case: of a packed file the one before `.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def said(subtitles: str) -> str:
    """Return the text of SRT or VTT: a cue a line, speakers by name; without times, styles and notes.

    A line that repeats the one before, as in captions that roll up, is read once.
    """
    cues, last = [], ""
    for block in re.split(r"\n\s*\n", subtitles):
        cue = []
        for row in block.partition("-->")[2].split("\n")[1:]:  # none of a header, a style or a note
            row = re.sub(r"<v(?:\.[^\s>]*)?\s+([^>]*)>", r"\1: ", row)
            row = " ".join(unescape(re.sub(r"</?[a-zA-Z0-9][^>]*>|\{\\[^}]*\}", "", row)).split())
            if row and row != last:
                cue.append(row)
                last = row
        cues += [" ".join(cue)] * bool(cue)
    return "\n".join(cues)


def read_encoded(path: Path) -> str:
    """Return the text of a file in UTF-8, in UTF-16 with its mark, or else, of HTML, in what it declares.

    Other encodings are not guessed: a wrong guess would be used without a word. Raises ValueError naming the file.
    """
    try:
        with open_packed(path) as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read ({reason}); change its permissions or copy it again") from error
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    data, names, text, line = data.removeprefix(mark), [MARKS.get(mark, "utf-8")], None, 0
    if not mark and suffix_of(path) in HTML and (declared := CHARSET.search(data[:4096])):
        name = declared[1].decode().lower()
        names.append({"iso-8859-1": "cp1252"}.get(name, name))  # as browsers do
    for name in names:
        with suppress(LookupError):
            try:
                text = text or data.decode(name).replace("\r\n", "\n").replace("\r", "\n")
            except UnicodeDecodeError as error:
                line = line or data[: error.start].count(b"\n") + 1
    if "\0" in (text or "") or (text is None and b"\0" in data):
        raise ValueError(f"{path}: binary: it has NUL bytes, which no text has; save it as UTF-8, or remove it")
    if text is None:
        fix = "save the file as UTF-8 (from Windows' code page: iconv -f WINDOWS-1252 -t UTF-8)"
        raise ValueError(f"{path}, line {line} is not UTF-8; {fix}")
    return text
