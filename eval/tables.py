"""Aligned plain-text tables for the terminal."""

from collections.abc import Sequence

from m2bert.terminal import shown


def align(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to equal width: the first to the left, the others to the right. Cells are `shown`."""
    table = [[shown(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    )


def points(value: float | None, decimals: int = 1) -> str:
    """A share as points (x 100), or a dash."""
    return "-" if value is None else f"{100 * value:.{decimals}f}"
