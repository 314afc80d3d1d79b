"""What reaches the terminal: one line an error, foreign text without control characters, exit codes."""

import difflib
import logging
import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterable

from typer import BadParameter
from typer.core import TyperGroup

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories that a terminal obeys, hides or cannot show
LONGEST_MESSAGE_CHARS = 2000
UsageError = BadParameter.__base__  # typer does not export it
OURS = ("m2bert", "modeling_m2bert")
LIBRARY_ERRORS = (  # that stand for bad input; looked up only in modules that are loaded
    ("safetensors", "SafetensorError"),
    ("huggingface_hub.errors", "StrictDataclassError"),
    ("pyarrow", "ArrowException"),
)
SECRETS = {  # patterns with what is written in their place: tokens of the Hub, user:password@ and ?token= of addresses
    r"(?<![A-Za-z0-9])(?:hf|api_org)_(?:(?:oauth|jwt)_)?[A-Za-z0-9]{20,}[\w-]*(?:\.[\w-]{10,})*": "<token>",
    r"(?<=//)[^/\s?#'\"<>]+@": "<secret>@",
    r"(?i)([?&][\w.-]*(?:token|secret|password|api_?key|signature|credential)[\w.-]*=)[^&#\s'\"<>]+": r"\1<secret>",
}


def masked(text: object) -> str:
    """Return text without tokens of the Hub and without the credentials of an address."""
    text = str(text)
    for pattern, instead in SECRETS.items():
        text = re.sub(pattern, instead, text)
    return text


class Ended(Exception):
    """A command ends before it has done everything, with a message and an exit code; no input is at fault."""

    exit_code = 0


def shown(text: object) -> str:
    """Return text that others wrote on one line: `masked`, control and format characters as escapes such as `\\x1b`."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in HIDDEN else character
        for character in masked(text)
    )


def one_line(error: object) -> str:
    """Return a message on one line: white space joined, `shown`, and cut in the middle if it is very long."""
    text = shown(" ".join(str(error).split()))
    half = LONGEST_MESSAGE_CHARS // 2
    return text if len(text) <= 2 * half else f"{text[:half]} [...] {text[-half:]}"


def several(count: int, noun: str) -> str:
    """Return a number and what it counts, such as "1 file" and "1,000 files"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'NAME'?" for the nearest known name, or nothing if none is near."""
    found = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


class LineFormatter(logging.Formatter):
    """Formats a log record as one line of `shown` text, before its traceback."""

    def formatMessage(self, record):  # noqa: N802  (logging's name)
        return shown(super().formatMessage(record))


class MaskedRecord(logging.LogRecord):
    """A log record whose message and traceback are `masked`, whichever library's handler writes it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = masked(logging.Formatter().formatException(self.exc_info))

    def getMessage(self):  # noqa: N802  (logging's name)
        return masked(super().getMessage())


def log_to_terminal(level: int = logging.WARNING, format: str = "%(levelname)s %(message)s") -> None:
    """Set up logging on stderr, as logging.basicConfig does, with a LineFormatter. Another call changes both."""
    root = logging.getLogger()
    handlers = [handler for handler in root.handlers if isinstance(handler.formatter, LineFormatter)]
    handler = handlers[0] if handlers else logging.StreamHandler()
    handler.setFormatter(LineFormatter(format))
    if handlers:
        root.setLevel(level)
    else:
        logging.basicConfig(level=level, handlers=[handler])


def run_command(name: str, command: Callable[[], object]) -> None:
    """Call `command`. Bad input is one line on stderr, begun by `name`, and exit code 2; an interruption exit code 130;
    `Ended` one line and its own exit code; a reader that is gone, as after `| head`, exit code 1 alone; any other error
    ends in a `masked` traceback. Every log record of the process is a MaskedRecord from then on: huggingface_hub and
    transformers write theirs by handlers of their own.
    """
    logging.setLogRecordFactory(MaskedRecord)
    try:
        command()
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            sys.exit(1)
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in OURS:
            extras = "an extra that brings it, 'm2bert[eval]' or 'm2bert[train]'"
            error = ValueError(f"the package {error.name!r} is not installed; pip install it, or {extras}")
        elif isinstance(error, UsageError) and "\n" not in error.format_message():  # the message of some is a help page
            error = ValueError(error.format_message())
        elif not isinstance(error, (Ended, *bad_input())):
            sys.excepthook = lambda *parts: sys.stderr.write(masked("".join(traceback.format_exception(*parts))))
            raise
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))


def reader_is_gone() -> bool:
    """Return whether nobody reads what is printed any more, as after `| head`; nothing is printed from then on."""
    try:
        print(flush=True)  # an empty line, if it was another pipe that broke
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def bad_input() -> tuple[type[Exception], ...]:
    """Return the errors that say that an input is bad, or what was computed from it; of loaded libraries too."""
    found = [getattr(sys.modules[module], kind, None) for module, kind in LIBRARY_ERRORS if module in sys.modules]
    return (ValueError, OSError, FloatingPointError, *(kind for kind in found if kind is not None))


class CommandGroup(TyperGroup):
    """A group of commands that run within `run_command`, with warnings on stderr."""

    def invoke(self, ctx):
        log_to_terminal()
        run_command("m2bert", lambda: super(CommandGroup, self).invoke(ctx))
