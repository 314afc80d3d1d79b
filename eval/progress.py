"""One bar at a time: work that counts itself inside work that counts itself moves the outer bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .encoders.processes import is_first

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit}s [{elapsed}<{remaining}]"

_outer: Callable[[float], None] | None = None  # takes the share, 0 to 1, of the outer work that was done


class Count:
    """How much of some work is done."""

    def __init__(self, total: float, advance: Callable[[float], None]):
        self.total, self._advance = total, advance

    def add(self, amount: float) -> None:
        """Take note that `amount` of the total is done."""
        if amount:
            self._advance(amount / self.total)

    @contextmanager
    def part(self, amount: float) -> Iterator[None]:
        """The block does `amount` of the total: bit by bit as far as it counts itself, and all of it by its end."""
        global _outer
        done, before = 0.0, _outer

        def advance(share: float) -> None:
            nonlocal done
            share = min(share, 1 - done)
            done += share
            self.add(amount * share)

        _outer = advance
        try:
            yield
            advance(1)
        finally:
            _outer = before


@contextmanager
def counted(total: float, what: str, unit: str, shown_total: int | None = None, show: bool = True) -> Iterator[Count]:
    """Count the work of the block: on a bar of its own, or inside a `part` of other work on the bar of that.

    Args:
        total: of the work, in whatever decides its time.
        unit: what the bar shows.
        shown_total: in `unit`, where that is not what decides the time.
        show: False keeps a bar of its own hidden.
    """
    if _outer is not None:
        yield Count(total, _outer)
        return
    shown_total = total if shown_total is None else shown_total
    show = show and is_first() and total > 0
    quiet = nullcontext() if not show else logging_redirect_tqdm()  # lines of a log stand above the bar
    with tqdm(total=shown_total, desc=what, unit=unit, bar_format=BAR, leave=False, disable=not show) as bar, quiet:
        yield Count(total, lambda share: bar.update(share * shown_total))
        bar.update(round(bar.n) - bar.n)  # of many small shares
