"""The processes of one run, as `accelerate launch` or torchrun start them; alone, nothing is initialised."""

import os
from typing import TypeVar

Value = TypeVar("Value")


def is_first() -> bool:
    """Whether this process shows progress for all."""
    return os.environ.get("RANK", "0") == "0"


def several() -> bool:
    """Whether this process has others beside it."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class Processes:
    """This process's number (`rank`) among `world`.

    Raises:
        ValueError: there are several, and `accelerate`, through which they talk, is not installed.
    """

    def __init__(self):
        self.rank, self.world, self._state = 0, 1, None
        if several():
            try:
                from accelerate import PartialState
                from accelerate.utils import parse_flag_from_env
            except ImportError as error:
                raise ValueError("several processes need the package accelerate; install it, or start one") from error
            import torch

            # Without this word, accelerate takes processes on CPUs for one process each.
            cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
            self._state = PartialState(cpu=cpu)
            self.rank, self.world = self._state.process_index, self._state.num_processes

    def wait(self) -> None:
        """Until every process has come here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def first_says(self, value: Value) -> Value:
        """The value that the first process gives."""
        if self._state is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]
