"""Start a training run: first the checks, which cost no time, then torch and everything else."""

import importlib
import logging
import os
import sys

from m2bert.terminal import run_command

from .inputs import ready

BODIES = {"mlm": "mlm_run", "opl": "retrieval_run"}


def command_line(name: str, text: str):
    """Run train/mlm.py or train/opl.py with the arguments of the process.

    Args:
        name: `mlm` or `opl`.
        text: what --help prints.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(text)
        return
    run_command(name, lambda: train(name, sys.argv[1:]))


def train(name: str, argv: list[str], processes: int = 1):
    """Check the arguments, then train in this process, or in several of accelerate's launcher.

    Raises:
        ValueError: a mistake in the arguments, before anything is started.
        SystemExit: a process of several failed. It has printed why; the exit code is its own.
    """
    config = ready(name, argv)
    if processes == 1:
        importlib.import_module(f".{BODIES[name]}", __package__).run(config, argv)
    else:
        launch(name, argv, processes)


def launch(name: str, argv: list[str], processes: int):
    """Train in several processes. The launcher's own report of a process that failed is left out: the process has
    said what was wrong."""
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    given = ["--num_processes", str(processes)]
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
        given.append("--multi_gpu")  # several processes, of whatever kind
    for noisy in ("torch.distributed.elastic", "accelerate.commands.launch"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args([*given, "-m", f"m2bert.train.{name}", *argv]))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        sys.exit(2 if 2 in codes else codes[0] if codes[0] > 0 else 128 - codes[0])
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
