"""Files as documents: which files are to be read, and the documents of one."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .extract import FORMATS, Document, Unreadable, format_of


class Found(NamedTuple):
    """Files to read, with their bytes; (path, reason) of those that cannot be read; how many names were left out."""

    files: dict[Path, int]
    failures: list[tuple[str, str]]
    left_out: int  # hidden files and folders (each folder once), __MACOSX, and further paths to the same file or folder


def find_files(paths: Sequence[str | Path], without: str = "") -> Found:
    """Find the files under paths that can be read: absolute paths, sorted, each file once.

    Links are followed. A file that several paths lead to is found under the one that is no link, or else the first.
    Hidden files are read only if they are among `paths` themselves.

    Args:
        paths: files and folders. ValueError if one does not exist.
        without: path of a folder that is passed over.
    """
    names, failures, left_out = [], [], 0
    listed: set[tuple[int, int]] = set()
    tops = [os.path.abspath(path) for path in paths]
    for top in tops:  # grows: links to folders come last, after all folders that are none
        if not os.path.exists(top):
            raise ValueError(f"path {top} does not exist; name a file or a folder")
        if not os.path.isdir(top):
            names.append(top)
            continue
        for folder, inner, files in os.walk(
            top, onerror=lambda error: failures.append((str(error.filename), _reason(error)))
        ):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in listed:
                left_out, inner[:] = left_out + 1, []
                continue
            listed.add((status.st_dev, status.st_ino))
            shown = [name for name in sorted([*inner, *files]) if name[0] != "." and name != "__MACOSX"]
            left_out += len(inner) + len(files) - len(shown)
            inner[:] = [name for name in shown if name in inner and os.path.join(folder, name) != without]
            tops += (path for path in (os.path.join(folder, name) for name in inner) if os.path.islink(path))
            names += (os.path.join(folder, name) for name in shown if name in files)
    once: dict[str, str] = {}
    for name in sorted(set(names), key=lambda name: (os.path.realpath(name) != name, name)):
        once.setdefault(os.path.realpath(name), name)
    left_out += len(names) - len(once)
    problems = {name: _problem(name) for name in once.values()}
    failures += ((name, problem) for name, problem in problems.items() if problem)
    files = {Path(name): os.path.getsize(name) for name in sorted(problems) if not problems[name]}
    return Found(files, sorted(failures), left_out)


def read_file(path: Path) -> list[Document]:
    """Return the documents of a file: one, or one a row of a table or of JSON lines. None of their texts is blank.

    Raises Unreadable with the reason, whatever is wrong with the file.
    """
    path = Path(os.path.abspath(path))
    if problem := _problem(str(path)):
        raise Unreadable(problem)
    try:
        documents = FORMATS[format_of(path)](path)
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable(_reason(error)) from error
    except Exception as error:  # on damaged files, the libraries raise whatever their code runs into
        reason = " ".join(str(error).split())[:300]
        if reason.startswith(str(path)):  # by this package's own readers, which name the file
            raise Unreadable(reason.removeprefix(str(path)).lstrip(",: ")) from error
        reason = f"{type(error).__name__} {reason}".replace(str(path), "it")
        raise Unreadable(f"damaged: no valid {format_of(path)[1:].upper()} ({reason}); save it again") from error
    if not documents or not all(document.text.strip() for document in documents):
        raise Unreadable("empty: there is no text in it; remove it")
    return documents


def _problem(name: str) -> str | None:
    """Return why a file is none to read, as far as its name and its entry in the folder tell."""
    if not os.path.isfile(name):
        return "no file: a pipe, a device or a socket" if os.path.exists(name) else "a link to a file that is gone"
    if (suffix := format_of(Path(name))) not in FORMATS:
        return f"unsupported type {suffix}; convert it to one of {', '.join(filter(None, FORMATS))}"
    return None if os.path.getsize(name) else "empty: the file has no bytes; remove it"


def _reason(error: OSError) -> str:
    return f"it cannot be read ({error.strerror or error}); change its permissions or copy it again"
