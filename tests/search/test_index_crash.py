"""Writers that are stopped at random moments, by SIGKILL and by Ctrl-C: nothing committed is lost or half there.

`python tests/search/test_index_crash.py 200 FOLDER` stops 200 of them and counts.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from crash_writer import work
from word_encoder import WINDOW, WordEncoder

from m2bert.search import Index
from m2bert.search.table import Table

OPERATIONS = ("add", "update", "delete", "compact", "rebuild")
DOCUMENTS = 40
WRITER = Path(__file__).parent / "crash_writer.py"


def text_of(number: int, edition: str) -> str:
    filler = " ".join(f"w{(number * 7 + step) % 90}" for step in range(150 + number))
    return f"document{number} in edition{edition} {filler}"


def write_files(folder: Path, edition: str) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(DOCUMENTS):
        (folder / f"{number:02d}-name.txt").write_text(text_of(number, edition))
    (folder / "rows.csv").write_text(
        "\n".join(["id,text,rank", *(f"{n},row{n} {text_of(100 + n, edition)},{n}" for n in range(5))])
    )
    return folder


def opened(folder: Path) -> Index:
    return Index.open(folder, device="cpu")


class Case:
    """An operation, the index before it, and all states that a document may be in when it is stopped."""

    def __init__(self, operation: str, scratch: Path):
        self.operation, self.scratch = operation, scratch / operation
        self.files = write_files(scratch / "files", "one")
        self.start, self.end = self.scratch / "start", self.scratch / "end"
        self.scratch.mkdir()
        if operation != "add":
            work("add", self.start, self.files)
        if operation == "compact":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Table, "finish", lambda self: None)
                for number in range(4):
                    Index.open(self.start).add([{"id": f"extra{number}", "text": text_of(200 + number, "one")}])
                    Index.open(self.start).delete([str(self.files / f"{number:02d}-name.txt")])
        if operation == "update":
            write_files(self.files, "two")
        if self.start.exists():
            shutil.copytree(self.start, self.end)
        self.seconds = self.write(operation, self.end)
        self.before, self.after = self.stored(self.start), self.stored(self.end)

    def write(self, operation: str, folder: Path, after: float | None = None, how: int = signal.SIGKILL) -> float:
        """Run a writer, stop it `after` seconds; return how long it worked."""
        command = [sys.executable, WRITER, operation, folder, self.files]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        begin = time.perf_counter()
        if after is not None:
            time.sleep(after)
            process.send_signal(how)
        self.stopped = process.stdout.readline() != "done\n"
        seconds = time.perf_counter() - begin
        _, errors = process.communicate(timeout=120)
        assert after is not None or not self.stopped, errors
        assert how == signal.SIGKILL or not self.stopped or "KeyboardInterrupt" in errors, errors
        return seconds

    def stored(self, folder: Path) -> dict[str, tuple]:
        """Return what is in an index, by id; each id is there once."""
        if not (folder / "documents.lance").exists():
            return {}
        index = Index.open(folder, "words" if self.operation == "add" else None)
        if not index.table.exists:  # stopped before its first commit
            return {}
        names = ["id", "path", "digest", "text", "spans", "vectors", "tokens"]
        rows = [row for batch in index.table.batches(names) for row in batch]
        assert max(Counter(row["id"] for row in rows).values(), default=1) == 1
        return {row["id"]: tuple(repr(row[name]) for name in names) for row in rows}

    def stop(self, moment: float, how: int) -> bool:
        """Stop a writer and check the index, then finish its work and check again; return whether it was stopped."""
        folder = self.scratch / "stopped"
        shutil.rmtree(folder, ignore_errors=True)
        if self.start.exists():
            shutil.copytree(self.start, folder)
        self.write(self.operation, folder, moment * self.seconds, how)
        stopped = self.stopped
        self.check(folder)
        work(self.operation, folder, self.files)
        assert self.stored(folder) == self.after
        self.check_found(folder)
        assert opened(folder).info()["not yet in the index of words"] == 0
        work("compact", folder, self.files)
        size, expected = (sum(p.stat().st_size for p in f.rglob("*") if p.is_file()) for f in (folder, self.end))
        assert size < 1.2 * expected + 50_000  # nothing that a stopped writer wrote stays
        return stopped

    def check(self, folder: Path) -> None:
        found = self.stored(folder)
        for id, state in found.items():
            assert state in (self.before.get(id), self.after.get(id)), f"{id} is neither as before nor as after"
        lost = (self.before.keys() & self.after.keys()) - found.keys()
        assert not lost
        if self.operation in ("compact", "rebuild"):
            assert found in (self.before, self.after)
        rows = {id for id in found if "#" in id}
        assert len(rows) in (0, 5)
        assert len({found[id][2] for id in rows}) <= 1  # all of one edition
        self.check_found(folder)

    def check_found(self, folder: Path) -> None:
        """Every document is the first answer to its own words, by words and by vectors."""
        found = self.stored(folder)
        index = opened(folder) if found else None
        for id, state in found.items():
            text = eval(state[3])  # noqa: S307  (of repr)
            word = text.split()[0]
            assert next(iter(index.rank(word, "bm25"))) == id
            assert next(iter(index.rank(" ".join(text.split()[:WINDOW]), "dense"))) == id
            assert index.document(id) == text


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return {}


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr("m2bert.search.encoder.Encoder", WordEncoder)


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_writer_that_is_stopped_loses_nothing(operation, tmp_path):
    case = Case(operation, tmp_path)
    for moment, how in ((0.1, signal.SIGINT), (0.3, signal.SIGKILL), (0.6, signal.SIGINT), (0.8, signal.SIGKILL)):
        case.stop(moment + random.uniform(-0.1, 0.1), how)


@pytest.mark.slow
def test_a_reader_beside_writers_of_other_processes_finds_whole_documents(tmp_path):
    case, searches = Case("update", tmp_path), 0
    index = opened(case.start)
    for operation in ("update", "compact", "rebuild", "delete"):
        process = subprocess.Popen([sys.executable, WRITER, operation, case.start, case.files], stderr=subprocess.PIPE)
        while process.poll() is None:
            hits = index.search("w5 w12 w80", limit=60, mode=("hybrid", "dense", "bm25")[searches % 3])
            assert len({hit.id for hit in hits}) == len(hits) >= 25
            assert all(hit.matches[-1][1] == hit.length for hit in hits)
            searches += 1
        assert process.returncode == 0, process.stderr.read()
    assert searches > 20
    assert index.info()["model"] == "others"


def main(number: int, folder: str) -> None:
    """Stop writers `number` times in all, at random moments, and print how often and with what loss."""
    import m2bert.search.encoder

    m2bert.search.encoder.Encoder = WordEncoder
    for operation in OPERATIONS:
        scratch = Path(folder) / f"of-{operation}"
        scratch.mkdir(parents=True)
        case, stopped, faults = Case(operation, scratch), Counter(), Counter()
        for turn in range(number // len(OPERATIONS)):
            how, moment = (signal.SIGKILL, signal.SIGINT)[turn % 4 == 3], random.random()
            try:
                stopped[how.name] += case.stop(moment, how)
            except Exception:
                faults[how.name] += 1
                place = Path(folder) / f"fault-{operation}-{turn}"
                shutil.copytree(case.scratch / "stopped", place)
                print(f"{operation}, {how.name} after {moment:.2f} of the work:", flush=True)
                traceback.print_exc(limit=-3, file=sys.stdout)
        print(f"{operation}: {case.seconds:.2f} s of work, {number // len(OPERATIONS)} times; stopped before the end: "
              f"{dict(stopped)}; faults: {dict(faults)}", flush=True)  # fmt: skip
        shutil.rmtree(scratch)


if __name__ == "__main__":
    np.random.seed(0)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(int(sys.argv[1]), sys.argv[2])
