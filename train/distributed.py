"""Exchange between the processes of one run. With one process nothing is sent."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, pad_across_processes, reduce
from torch import Tensor

T = TypeVar("T")


def gather_rows(local: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, in the order of ranks.

    Args:
        local: (n, W), on the device of the process; n may differ between processes.

    Returns:
        (N, W), in which only this process's rows keep their graph; and the index of the first of these.
    """
    state = PartialState()
    if state.num_processes == 1:
        return local, 0
    counts = gather_object([len(local)])
    longest = max(counts)
    padded = gather(pad_across_processes(local.detach(), dim=0))  # (world * longest, W)
    rows = [padded[rank * longest : rank * longest + count] for rank, count in enumerate(counts)]
    rows[state.process_index] = local
    return torch.cat(rows), sum(counts[: state.process_index])


def gather_lists(items: list) -> list:
    """Return the lists of all processes joined in the order of ranks; items must be picklable."""
    return gather_object(items) if PartialState().num_processes > 1 else items


def sum_over_processes(values: list[float]) -> list[float]:
    """Return sums over processes, in float64."""
    state = PartialState()
    if state.num_processes == 1:
        return values
    return reduce(torch.tensor(values, dtype=torch.float64, device=state.device), "sum").tolist()


def split_indices(count: int) -> range:
    """Return the part of `range(count)` that belongs to this process: every world-th index from its rank."""
    state = PartialState()
    return range(state.process_index, count, state.num_processes)


def from_main(compute: Callable[[], T]) -> T:
    """Call `compute` on the main process alone; return its result, or raise its error, on all of them."""
    result, error = None, None
    if PartialState().is_main_process:
        try:
            result = compute()
        except Exception as caught:  # raised below, so that no process waits for one that has gone
            error = caught
    result, error = gather_lists([(result, error)])[0]
    if error is not None:
        raise error
    return result
