"""The processes of a run, and one progress bar for all of its nested work.

`accelerate launch` or torchrun start several processes; a single one initializes nothing.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit}s [{elapsed}<{remaining}]"

Value = TypeVar("Value")
_outer: Callable[[float], None] | None = None  # takes the fraction of the outer work that was done


def is_first() -> bool:
    """Return whether this process writes results and shows progress for all."""
    return os.environ.get("RANK", "0") == "0"


def has_others() -> bool:
    """Return whether several processes work on this run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class Processes:
    """Know this process's number (`rank`) among `world`, and talk to the others."""

    def __init__(self):
        self.rank, self.world, self._state = 0, 1, None
        if has_others():
            import torch
            from accelerate import PartialState
            from accelerate.utils import parse_flag_from_env

            # On CPU accelerate needs cpu=True to form a group.
            cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
            self._state = PartialState(cpu=cpu)
            self.rank, self.world = self._state.process_index, self._state.num_processes

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def from_first(self, value: Value) -> Value:
        """Return the first process's value in all processes."""
        if self._state is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]


class Count:
    """Count how much of some work is done."""

    def __init__(self, total: float, advance: Callable[[float], None], bar: tqdm | None = None):
        self.total, self._advance, self._bar = total, advance, bar

    def describe(self, what: str) -> None:
        """Change what the bar says of the work, if this work has a bar of its own."""
        if self._bar is not None:
            self._bar.set_description_str(what)  # BAR has the colon

    def add(self, amount: float) -> None:
        """Add `amount` of the total."""
        if amount:
            self._advance(amount / self.total)

    @contextmanager
    def part(self, amount: float) -> Iterator[None]:
        """Let the block do `amount` of the total: gradually as far as it counts itself, and all of it by its end."""
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
    """Count the work of the block: on its own bar, or inside a `part` of other work on the bar of that.

    Args:
        total: of the work, in whatever decides its time; the bar shows `shown_total` in `unit`, if that is another.
        show: False hides a bar that is not inside another.
    """
    if _outer is not None:
        yield Count(total, _outer)
        return
    shown_total = total if shown_total is None else shown_total
    show = show and is_first() and total > 0
    quiet = logging_redirect_tqdm() if show else nullcontext()  # lines of a log stand above the bar
    with tqdm(total=shown_total, desc=what, unit=unit, bar_format=BAR, leave=False, disable=not show) as bar, quiet:
        yield Count(total, lambda share: bar.update(min(share * shown_total, shown_total - bar.n)), bar)
        bar.update(round(bar.n) - bar.n)  # of many small fractions
