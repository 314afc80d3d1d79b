"""What reads files that others wrote: each command with small inputs, what it gives, and what a reference says.

A target's `run` works in a copy of its folder in which one file was damaged. It returns what can be compared with the
result on the whole files, or raises what the command would end with. Where damage may change the result and be none
(another text, another weight), `reference` says what is right, read by other means than this package's.
"""

import contextlib
import io
import logging
import random
import sys
from pathlib import Path

import fuzz_mutations as mutations
import numpy as np

from m2bert.cli import app

WORDS = ["apple", "pear", "boat", "sail", "stone", "wall", "cloud", "rain", "river", "bridge", "horse", "saddle"]
TEXTS = ["apple pear", "the boat sails", "stone", ""]
PAIRS = list(zip(WORDS[::2], WORDS[1::2], strict=True))


class Refused(Exception):
    """A command ended with exit code 2, or 1: a part of its work is left out."""


class Incomparable(Exception):
    """A reference cannot say what is right."""


def command(run, *arguments) -> str:
    """Run a command in this process; its standard output. Raises Refused, or what would be a traceback."""
    out, err = io.StringIO(), io.StringIO()
    factory, hook = logging.getLogRecordFactory(), sys.excepthook
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        logging.setLogRecordFactory(factory)
        sys.excepthook = hook
    for text in (out.getvalue(), err.getvalue()):
        assert not {"\x1b", "\u202e"} & {*text}, f"control or format characters reach the terminal: {text!r:.300}"
    if code in (1, 2):
        lines = [line for line in err.getvalue().splitlines() if line.startswith(("m2bert: ", "mlm: "))]
        lines = [line for line in lines if "%|" not in line]
        assert len(lines) == 1, f"not one line: {err.getvalue()[-600:]!r}"
        raise Refused(lines[0])
    assert code == 0, f"exit code {code}: {err.getvalue()!r:.500}"
    return out.getvalue()


def m2bert(*arguments) -> str:
    return command(app, *arguments)


class Target:
    """What a command reads.

    Args:
        files: those that may be damaged, by their names in the folder.
        weight: how often it is drawn.
        given: what else `run` and `reference` read.
    """

    def __init__(self, name: str, folder: Path, files: list[str], weight: int = 10, **given):
        self.name, self.folder, self.files, self.weight, self.expected = name, folder, files, weight, None
        vars(self).update(given)

    def reference(self, folder: Path, scratch: Path):
        raise Incomparable("nothing may change")

    def same(self, one, other) -> bool:
        return one == other

    def damage(self, folder: Path, generator: random.Random) -> mutations.Mutation:
        return mutations.mutate(folder / generator.choice(self.files), generator)


def close(one, other) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=1e-3, atol=1e-4)
