"""Damaged files of every kind that the package reads: refused in one line that names file or key, or read right.

    PYTHONPATH=tests/eval:tests/hub python tests/test_fuzz.py [CASES] [FIRST SEED] [TARGET]     prints what it finds

Every case is drawn by its seed alone. A case is a finding if its command ends in a traceback, names neither file nor
key, takes long or much memory, or accepts the file and gives another result than a reference.
"""

import random
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import fuzz_mutations as mutations
import pytest
from fuzz_build import build
from fuzz_targets import Incomparable, Refused, Target

from m2bert.terminal import bad_input

SECONDS = 2.0  # of processor time, beyond what the undamaged case takes
MEGABYTES = 500


class Findings:
    def __init__(self):
        self.outcomes, self.found = Counter(), []

    def add(self, kind: str, what: str):
        self.outcomes[kind] += 1
        self.found.append(f"{kind}: {what}")


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process, in megabytes."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) // 1024


def lay_out(target: Target, place: Path) -> tuple[Path, Path]:
    """Return a copy of a target's folder, and an empty one."""
    shutil.rmtree(place, ignore_errors=True)
    folder, scratch = mutations.copy(target.folder, place / target.folder.name), place / "scratch"
    scratch.mkdir()
    return folder, scratch


def case(target: Target, seed: int, place: Path, findings: Findings):
    """Damage one file of a target, and judge what comes of it."""
    folder, scratch = lay_out(target, place)
    mutation = target.damage(folder, random.Random(seed))
    name = f"case {seed}, {target.name}, {mutation}"
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts again
    before, start = memory("VmRSS"), time.process_time()
    try:
        result = target.run(folder, scratch)
    except (Refused, *bad_input()) as error:
        findings.outcomes["refused"] += 1
        message = str(error)
        if not names_it(message, mutation, folder):
            findings.add("names neither file nor key", f"{name}: {message[:300]}")
        if not isinstance(error, Refused | ValueError | OSError):
            findings.add("traceback", f"{name}: {message[:300]}")
    except AssertionError as error:
        findings.add("wrong", f"{name}: {error!s:.600}")
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not re.search("/(site-packages|tests)/", frame.filename)]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        findings.add("traceback", f"{where}: {name}: {type(error).__name__}: {error!s:.300}")
    else:
        judge(target, result, folder, scratch, name, findings)
    seconds, peak = time.process_time() - start, memory("VmHWM") - before
    if seconds > target.seconds + SECONDS:
        findings.add("slow", f"{name}: {seconds:.1f} s")
    if peak > MEGABYTES:
        findings.add("much memory", f"{name}: {peak} MB")


def names_it(message: str, mutation: mutations.Mutation, folder: Path) -> bool:
    """Whether an error names the file, one of several by its folder, a kind of file, or the key."""
    path = mutation.path
    names = {path.name, path.stem, str(folder), *(key[:5].replace("\x1b", "\\x1b") for key in mutation.keys)}
    names |= {"tokenizer"} if "tokenizer" in path.name else set()
    return any(name in message for name in names)


def judge(target: Target, result, folder: Path, scratch: Path, name: str, findings: Findings):
    if target.same(result, target.expected):
        findings.outcomes["accepted, same"] += 1
        return
    try:
        right = target.reference(folder, scratch)
    except Incomparable as error:
        if str(error) == "nothing may change":
            findings.add("accepted and wrong", f"{name}: got {result!s:.200}, not {target.expected!s:.200}")
        else:
            findings.outcomes["accepted, another content"] += 1
        return
    except Exception as error:
        findings.add("accepted and wrong", f"{name}: the reference refuses it ({type(error).__name__}: {error!s:.200})")
        return
    if target.same(result, right):
        findings.outcomes["accepted, as the reference"] += 1
    else:
        findings.add("accepted and wrong", f"{name}: got {result!s:.300}, not {right!s:.300}")


def prepare(root: Path) -> list[Target]:
    targets = build(root / "whole")
    for target in targets:
        start = time.process_time()
        target.expected = target.run(*lay_out(target, root / "case"))
        target.seconds = time.process_time() - start
    return targets


def fuzz(targets: list[Target], seeds, place: Path) -> Findings:
    """Return the findings of some seeds, and print each when it is found."""
    findings, weights = Findings(), [target.weight for target in targets]
    for seed in seeds:
        target, known = random.Random(f"target {seed}").choices(targets, weights)[0], len(findings.found)
        case(target, seed, place, findings)
        for line in findings.found[known:]:
            print(line, flush=True)
    return findings


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield prepare(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("cases", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_read_right(targets, tmp_path, cases):
    findings = fuzz(targets, range(cases), tmp_path / "case")
    assert not findings.found, "\n".join(findings.found)


def main(cases: str = "200", first: str = "0", only: str = ""):
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as root:
        targets = [target for target in prepare(Path(root)) if only in target.name]
        findings = fuzz(targets, range(int(first), int(first) + int(cases)), Path(root, "case"))
        print(dict(findings.outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
