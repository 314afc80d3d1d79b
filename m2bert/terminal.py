"""What reaches the terminal: one line an error, foreign text without control characters, exit codes."""

import difflib
import logging
import sys
import unicodedata
from collections.abc import Callable, Iterable

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories that a terminal obeys, hides or cannot show
LONGEST_MESSAGE_CHARS = 2000
LIBRARY_ERRORS = (  # that stand for bad input; looked up only in modules that are loaded
    ("safetensors", "SafetensorError"),
    ("huggingface_hub.errors", "StrictDataclassError"),
    ("pyarrow", "ArrowException"),
)


class Ended(Exception):
    """A command ends before it has done everything, with a message and an exit code; no input is at fault."""

    exit_code = 0


def shown(text: object) -> str:
    """Return text that others wrote on one line, with control and format characters as escapes such as `\\x1b`."""
    return "".join(_escaped(c) if unicodedata.category(c) in HIDDEN else c for c in str(text))


def one_line(error: object) -> str:
    """Return a message on one line: white space joined, `shown`, and cut in the middle if it is very long."""
    text = shown(" ".join(str(error).split()))
    half = LONGEST_MESSAGE_CHARS // 2
    return text if len(text) <= 2 * half else f"{text[:half]} [...] {text[-half:]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'NAME'?" for the nearest known name, or nothing if none is near."""
    found = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


class LineFormatter(logging.Formatter):
    """Formats a log record as one line of `shown` text, before its traceback."""

    def formatMessage(self, record):  # noqa: N802  (logging's name)
        return shown(super().formatMessage(record))


def log_to_terminal(level: int = logging.WARNING, format: str = "%(levelname)s %(message)s") -> None:
    """Set up logging on stderr, as logging.basicConfig does, with a LineFormatter."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(format))
    logging.basicConfig(level=level, handlers=[handler])


def run_command(name: str, command: Callable[[], object]) -> None:
    """Call `command`. Bad input is one line on stderr and exit code 2, an interruption exit code 130, `Ended` one line
    and its own exit code.

    Args:
        name: the program, which begins the line.
    """
    try:
        command()
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        sys.exit(130)
    except Ended as end:
        print(f"{name}: {one_line(end)}", file=sys.stderr)
        sys.exit(end.exit_code)
    except Exception as error:
        if not isinstance(error, bad_input()):
            raise
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def bad_input() -> tuple[type[Exception], ...]:
    """Return the errors that say that an input (or what was computed from it) is bad, those of loaded libraries among
    them."""
    found = [getattr(sys.modules[module], kind, None) for module, kind in LIBRARY_ERRORS if module in sys.modules]
    return (ValueError, OSError, FloatingPointError, *(kind for kind in found if kind is not None))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
