"""Plain texts in a folder, one document a file: which files are texts, and what a reader would see of one."""

import logging
import re
import zlib
from collections import Counter
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

from .files import open_packed, visible

logger = logging.getLogger(__name__)

TEXTS = (".txt", ".md", ".html", ".htm")
MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}  # at the beginning of a file
CHARSET = re.compile(rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?(?!utf)([\w.:-]+)""", re.I)
HIDDEN = {"script", "style", "template"}
INLINE = {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "del", "dfn", "em", "font", "i", "ins", "kbd", "mark", "q",
          "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"}  # fmt: skip
CELLS = {"td", "th"}


def text_files(folder: Path) -> list[Path]:
    """Return the files below a folder that are texts, sorted; a warning counts visible files of other types."""
    files = [path for path in visible(folder, "**/*") if path.is_file()]
    others = Counter(path.suffix.lower() or "no suffix" for path in files if path.suffix.lower() not in TEXTS)
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        logger.warning("%s: left out for their type: %s; documents are %s", folder, kinds, ", ".join(TEXTS))
    return [path for path in files if path.suffix.lower() in TEXTS]


def read_document(path: Path) -> str:
    """Return the text of a file, of HTML what a browser would show. Raises ValueError naming the file."""
    text = read_encoded(path)
    return visible_text(text) if is_html(path) else text


def is_html(path: Path) -> bool:
    """Return whether a file's name says that it holds HTML, compressed or not."""
    return path.name.lower().removesuffix(".gz").endswith((".html", ".htm"))


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
    if not mark and is_html(path) and (declared := CHARSET.search(data[:4096])):
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


def visible_text(html: str) -> str:
    """Return the title and the visible text of HTML: a line a block, a table's row on one line."""
    parser = _Visible()
    parser.feed(html.replace("<![", "<! ["))  # a comment to browsers; Python 3.11 fails on some of them
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(filter(None, lines))


class _Visible(HTMLParser):
    def __init__(self):
        super().__init__()
        self.parts: list[str] = []
        self.hidden: str | None = None  # the element that is not shown and still open

    def handle_starttag(self, tag, attrs):
        self.hidden = self.hidden or (tag if tag in HIDDEN else None)
        self._add(_break(tag))

    def handle_endtag(self, tag):
        self._add(_break(tag))
        self.hidden = None if tag == self.hidden else self.hidden

    def handle_data(self, data):
        self._add(data if self.lasttag == "pre" else re.sub(r"\s+", " ", data))

    def _add(self, part):
        self.parts += [part] * (self.hidden is None)


def _break(tag: str) -> str:
    """Return what parts the text before a tag from the text after it."""
    return "" if tag in INLINE | HIDDEN else " " if tag in CELLS else "\n"
