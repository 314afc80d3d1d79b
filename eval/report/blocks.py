"""What a report is made of: sections of sentences, tables and plots, free of any output format."""

import re
from dataclasses import dataclass, field

MINUS = "\N{MINUS SIGN}"
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
DASH = "\N{EN DASH}"  # stands for a number that was not measured


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell.

    Attributes:
        strong: set apart; the caption of the table says what that means.
        paper: printed in the paper, not measured here.
        source: number of a row of the table of sources, to point to.
        anchor: name under which others point to this cell.
    """

    text: str
    strong: bool = False
    paper: bool = False
    source: int | None = None
    anchor: str = ""


@dataclass(frozen=True)
class Group:
    """Rows of a table under a title of their own; "" for none."""

    title: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Table:
    """A table: the first `text_columns` columns hold words, the others numbers.

    Attributes:
        folded: shown only when asked for, in formats that can.
    """

    caption: str
    header: list[str]
    groups: list[Group]
    text_columns: int = 1
    folded: bool = False
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Plot:
    """A picture: `svg` is an <svg> element whose text has the colour `currentColor`."""

    name: str
    svg: str
    caption: str
    kind: str = field(default="plot", init=False)


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str
    kind: str = field(default="prose", init=False)


@dataclass(frozen=True)
class Errata:
    """Where the paper contradicts itself or what is known, shown beside the tables concerned."""

    items: list[str]
    kind: str = field(default="errata", init=False)


Block = Table | Plot | Prose | Errata


@dataclass(frozen=True)
class Section:
    """A heading and what follows it. `tables` are the numbers of the paper's tables that it answers."""

    title: str
    blocks: list[Block]
    tables: tuple[str, ...] = ()
    level: int = 2

    @property
    def slug(self) -> str:
        """The heading as an anchor."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def row(*texts: str | Cell) -> list[Cell]:
    """Cells of plain texts, or as they are."""
    return [text if isinstance(text, Cell) else Cell(text) for text in texts]


def paper_row(name: str, *texts: str) -> list[Cell]:
    """A row of the paper's numbers."""
    return [Cell(text, paper=True) for text in (f"{name} (paper)", *texts)]


def plain_table(caption: str, header: list[str], rows: list[list[Cell]], **options) -> Table:
    """A table whose rows are in no groups."""
    return Table(caption, header, [Group("", rows)], **options)


def points(share: float | None) -> str:
    """A score from 0 to 1 as points."""
    return DASH if share is None else number(100 * share)


def number(value: float | None, digits: int = 1) -> str:
    """A number with so many digits after the point, thousands set apart, or a dash."""
    return DASH if value is None else f"{value:,.{digits}f}".replace("-", MINUS)


def difference(points: float) -> str:
    """A difference in points with its sign."""
    return f"{points:+.1f}".replace("-", MINUS)


def interval(bounds: list[float] | tuple[float, float] | None) -> str:
    """Two scores from 0 to 1 as points."""
    if bounds is None:
        return DASH
    low, high = (number(100 * bound) for bound in bounds)
    return f"{low} to {high}"


def seconds(value: float | None) -> str:
    """Seconds with three significant digits."""
    if value is None:
        return DASH
    return number(value, 0) if value >= 100 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share as whole per cent; what is less than all never reads as 100 %."""
    if share is None:
        return DASH
    return f"{min(round(100 * share), 99 if share < 1 else 100)}{NO_BREAK_SPACE}%"
