"""What a reader sees of HTML."""

import re
from html.parser import HTMLParser

HIDDEN = {"script", "style", "template"}
INLINE = {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "del", "dfn", "em", "font", "i", "ins", "kbd", "mark", "q",
          "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"}  # fmt: skip
CELLS = {"td", "th"}


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
