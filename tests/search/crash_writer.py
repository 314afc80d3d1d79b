"""A process that changes an index until it is stopped: `crash_writer.py OPERATION INDEX FILES`; see test_index_crash.

It prints `ready` once everything is imported, and `done`.
"""

import sys
from pathlib import Path

from word_encoder import WordEncoder

import m2bert.search.encoder
from m2bert.search import Index


def work(operation: str, folder: Path | str, files: Path | str, ready=lambda: None) -> None:
    index = Index.open(folder, "words" if operation == "add" else None)
    ready()
    if operation in ("add", "update"):
        index.add(files)
    elif operation == "delete":
        for number in range(0, 40, 4):
            index.delete(filter=f"path LIKE '%/{number:02d}-%'")
        index.delete([str(path) for path in sorted(Path(files).glob("*.txt"))[:8]])
    elif operation == "compact":
        index.compact()
    elif operation == "rebuild":
        index.rebuild("others")


if __name__ == "__main__":
    import lance  # noqa: F401

    import m2bert.eval.progress
    import m2bert.eval.search
    import m2bert.search.passages  # noqa: F401

    m2bert.search.encoder.Encoder = WordEncoder
    Index.batch_documents = 6  # several commits
    work(*sys.argv[1:], ready=lambda: print("ready", flush=True))
    print("done", flush=True)
