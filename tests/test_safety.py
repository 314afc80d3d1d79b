"""What code and documents must not do: run what they read, show commands whose code can change, read tokens.

`hub/test_checkpoints.py` attacks the functions that read folders.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ["hub", "eval", "train", "modeling_m2bert", "m2bert"]
CODE = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

# --- code that can run what a file or a string holds ---

RULES = "S102,S301,S302,S306,S307,S506,S602,S604,S605"  # ruff: exec, pickle, marshal, mktemp, eval, yaml.load, shells
PICKLES = r"^\s*(import|from) +(pickle|joblib|dill|cloudpickle|shelve|marshal)\b"
DANGEROUS = [r"torch\.load\((?![^)]*weights_only=True)", r"from torch import .*\bload\b", r"\b(unsafe|full)_load",
             r"\ballow_pickle\b", r"register_for_checkpointing\(", PICKLES]  # fmt: skip


def dangers(text: str) -> list[str]:
    return [pattern for pattern in DANGEROUS if re.search(pattern, text, re.MULTILINE)]


def test_no_code_can_run_what_it_reads():
    """The readers of the research code's weights are the exception."""
    arguments = ["check", "--isolated", "--ignore-noqa", "--select", RULES, "--output-format", "concise", *FOLDERS]
    done = subprocess.run([sys.executable, "-m", "ruff", *arguments], capture_output=True, text=True, cwd=ROOT)
    found = [line for line in done.stdout.splitlines() if re.search(r": S\d+ ", line)]
    assert (found, done.returncode) == ([], 0), done.stderr
    for path in CODE:
        name = path.relative_to(ROOT).as_posix()
        assert set(dangers(path.read_text())) <= ({PICKLES} if name.startswith("hub/convert/") else set()), name


# --- documented commands ---

DOCUMENTS = [ROOT / "README.md", ROOT / "hub/templates/model_card.md", *sorted((ROOT / "docs").glob("*.md")),
             ROOT / "train/lora.py", ROOT / "eval/metrics/ndcg/README.md",
             *sorted(path for path in (ROOT / "examples").iterdir() if path.is_file())]  # fmt: skip
WRITTEN_HERE = (
    "runs",
    "demo-output",
    "exports",
    "hub",
    "models",
)  # made by documented commands, or here
WITHOUT_CODE = {"sentence-transformers/all-MiniLM-L6-v2"}  # models whose classes are in transformers
HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def unpinned(text: str) -> list[str]:
    """Calls that run the code of a Hub id at whatever commit it is, and encoders that would have to."""
    found = []
    for start in re.finditer(r"\w\(", text):
        call = own_arguments(text, start.end())
        runs_code = re.search(r"trust_remote_code\s*=\s*True", call) or text.endswith("evaluate.load(", 0, start.end())
        if runs_code and not re.search(r"\brevision\s*=\s*(?![\"'](main|master)[\"'])", call):
            found += re.findall(rf"[\"']({HUB_ID})[\"']", call)
    for name in re.findall(rf"(?:--encoder[ =]|\bmodel: )[\"']?({HUB_ID}(?:@\S+)?)", text):
        found += [] if re.search("@([0-9a-f]{40}|COMMIT)$", name.strip("\"'`,.")) else [name]
    return [name for name in found if name.split("/")[0] not in WRITTEN_HERE and name not in WITHOUT_CODE]


def own_arguments(text: str, start: int) -> str:
    """What stands between a call's parentheses, the first of them just before `start`, without calls inside it."""
    own, depth = [], 1
    for character in text[start:]:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            break
        own += [character] if depth == 1 else []
    return "".join(own)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documented_commands_run_no_code_that_can_change(path):
    assert unpinned(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('model = SentenceTransformer("org/name", trust_remote_code=True)', 1),
        ('AutoModel.from_pretrained(\n    "org/name",\n    trust_remote_code = True, revision="main"\n)', 1),
        ("encoders:\n  - model: org/name@main", 1),
        ('ndcg = evaluate.load("org/ndcg")', 1),
        ('SentenceTransformer("org/name", revision=COMMIT, trust_remote_code=True)', 0),
        ("m2bert eval --encoder org/name@" + 40 * "a", 0),
    ],
)
def test_an_unpinned_command_is_found(text, count):
    assert len(unpinned(f"Load it:\n\n```\n{text}\n```\n")) == count


def test_tokens_are_left_to_the_client():
    """What is never read cannot be shown; `m2bert push` only asks if there is one."""
    reads = r"get_token\(\)(?! is None)|environ[^\n]*\b(HF|HUGGING_?FACE_HUB)_TOKEN|(print|echo|log).*os\.environ\b"
    assert [path.name for path in CODE if re.search(reads, path.read_text())] == []
