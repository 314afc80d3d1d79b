"""Docstrings of installed packages, read from their source files; nothing is imported."""

import ast
import gc
import logging
import re
import warnings
from importlib import metadata
from typing import NamedTuple

logger = logging.getLogger(__name__)

MIN_DOCSTRING_CHARS = 80
SKIPPED_PATHS = re.compile(r"(^|/)(_?tests?|testing|_?vendor(ed)?|_?externals?|extern)/|(^|/)(test_|conftest)")
LAYOUT_LINE = re.compile(r"\W{3,}")  # heading underlines, table rules: one WordPiece token per character
PROMPT = re.compile(r"^( *)(?:>>>|\.\.\.) ?", re.MULTILINE)


class Entry(NamedTuple):
    """One docstring: the dotted name of what it documents, and its text."""

    name: str
    text: str


def clean_docstring(raw: str) -> str:
    """Dedent and drop layout lines and doctest prompts.

    Not `inspect.cleandoc`: that changed between Python versions, and the text must not.
    """
    first, *others = raw.expandtabs().splitlines() or [""]
    margin = min((len(line) - len(line.lstrip()) for line in others if line.strip()), default=0)
    lines = [first.strip(), *(line[margin:].rstrip() for line in others)]
    text = "\n".join(line for line in lines if not LAYOUT_LINE.fullmatch(line.strip()))
    return re.sub(r"\n{3,}", "\n\n", PROMPT.sub(r"\1", text)).strip()


def read_docstrings(source: bytes, module: str) -> list[Entry]:
    """Return docstrings of a module, its public classes, functions and methods, in source order."""
    entries = []

    def visit(node: ast.AST, name: str) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = clean_docstring(ast.get_docstring(node, clean=False) or "")
            if len(text) >= MIN_DOCSTRING_CHARS:
                entries.append(Entry(name, text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        for child in getattr(node, "body", []):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if not child.name.startswith("_"):
                    visit(child, f"{name}.{child.name}")
            elif isinstance(child, ast.If | ast.Try):
                visit(child, name)

    visit(parse(source), module)
    return entries


def parse(source: bytes) -> ast.Module:
    """Return the syntax tree of other people's code: its invalid escape sequences are not worth a warning here.

    Garbage collection pauses: a tree has no cycles, but allocating one sets off full collections again and
    again, which takes longer than parsing in a process that has torch loaded.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.parse(source)
    finally:
        if collecting:
            gc.enable()


def read_package(package: str, prefixes: list[str] | None, seen: set[str]) -> list[Entry]:
    """Return entries of an installed distribution in path order, without test and vendored code.

    Args:
        package: name of the distribution, as in `pip install NAME`.
        prefixes: keep only files whose path begins with one of them; None keeps all.
        seen: texts to leave out; those returned are added to it.
    """
    entries = []
    for path in sorted(metadata.files(package) or [], key=str):
        name = path.as_posix()
        if not name.endswith(".py") or name.startswith("..") or SKIPPED_PATHS.search(name):
            continue
        if prefixes and not name.startswith(tuple(prefixes)):
            continue
        source = path.locate().read_bytes()
        if b'"""' not in source and b"'''" not in source:
            continue
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        try:
            docstrings = read_docstrings(source, module)
        except SyntaxError as error:  # a file for another Python than this one
            logger.warning("skipped %s of %s: %s", name, package, error)
            continue
        for entry in docstrings:
            if entry.text not in seen:
                seen.add(entry.text)
                entries.append(entry)
    return entries
