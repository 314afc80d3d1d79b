"""What the sources and documents must not say: code that runs what it reads, commands that run code which can change,
logs that tell a token. `hub/test_foreign_folders.py` attacks the functions that read folders.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = [ROOT / "configuration_m2bert.py", *(
    path for folder in ("hub", "eval", "train", "modeling_m2bert") for path in sorted((ROOT / folder).rglob("*.py"))
)]  # fmt: skip

# --- code that can run what a file or a string holds ---

DANGEROUS = {
    "eval", "exec", "compile", "builtins.eval", "builtins.exec", "os.system", "os.popen", "tempfile.mktemp",
    "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all", "torch.load",
}  # fmt: skip
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
WEIGHTS = "hub/convert/source.py"
ALLOWED = {
    (WEIGHTS, "torch.load(weights_only=True)"): "weights of the research code, which come as files of torch.save",
    (WEIGHTS, "pickle"): "the error by which weights_only=True refuses a file",
    ("hub/convert/inert_pickle.py", "pickle"): "an unpickler that calls nothing a file names; its test attacks it",
}


def names_of_imports(tree: ast.AST) -> dict[str, str]:
    """{name in the file: what it stands for}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.asname or each.name.split(".")[0]: each.name if each.asname else each.name.split(".")[0]
                      for each in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """`numpy.load` for `np.load`; empty for what is no plain name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return ""


def dangers(source: str) -> set[str]:
    """What in a file's code can run what it reads."""
    tree = ast.parse(source)
    names = names_of_imports(tree)
    found = {name.split(".")[0] for name in names.values()} & PICKLES
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func, names)
        arguments = {each.arg: each.value for each in node.keywords}

        def is_true(name, arguments=arguments):
            return isinstance(arguments.get(name), ast.Constant) and arguments[name].value is True

        if called == "torch.load" and is_true("weights_only"):
            found.add("torch.load(weights_only=True)")
        elif called in DANGEROUS:
            found.add(called)
        elif called in ("yaml.load", "yaml.load_all"):
            loader = dotted(arguments.get("Loader", node.args[-1]), names)
            found |= set() if loader in ("yaml.SafeLoader", "yaml.CSafeLoader") else {called}
        elif called == "numpy.load" and "allow_pickle" in arguments:
            found |= {"numpy.load(allow_pickle)"}
        elif called.startswith("subprocess.") and "shell" in arguments:
            found.add("subprocess(shell)")
        elif called.endswith(".register_for_checkpointing"):
            found.add("register_for_checkpointing")
    return found


def test_no_code_can_run_what_it_reads_but_where_it_is_said_why():
    found = {(path.relative_to(ROOT).as_posix(), what) for path in CODE for what in dangers(path.read_text())}
    assert found - set(ALLOWED) == set()
    assert set(ALLOWED) - found == set(), "a permission that nothing needs"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle\npickle.load(f)", "pickle"),
        ("def f():\n    from pickle import loads as read", "pickle"),
        ("import joblib", "joblib"),
        ("import torch as t\nt.load(f)", "torch.load"),
        ("from torch import load\nload(f, weights_only=False)", "torch.load"),
        ("import torch\ntorch.load(f, weights_only=True)", "torch.load(weights_only=True)"),
        ("import numpy as np\nnp.load(f, allow_pickle=x)", "numpy.load(allow_pickle)"),
        ("import yaml\nyaml.load(f, Loader=yaml.Loader)", "yaml.load"),
        ("import yaml\nyaml.load(f, yaml.UnsafeLoader)", "yaml.load"),
        ("from yaml import unsafe_load\nunsafe_load(f)", "yaml.unsafe_load"),
        ("eval(x)", "eval"),
        ("exec(x)", "exec"),
        ("import subprocess\nsubprocess.run(x, shell=True)", "subprocess(shell)"),
        ("from subprocess import Popen\nPopen(x, shell=y)", "subprocess(shell)"),
        ("import os\nos.system(x)", "os.system"),
        ("import tempfile\ntempfile.mktemp()", "tempfile.mktemp"),
    ],
)
def test_the_scanner_sees(source, expected):
    assert dangers(source) == {expected}


def test_the_scanner_lets_harmless_code_pass():
    harmless = "import yaml\nimport numpy as np\nimport re\nimport subprocess\nmodel.eval()\nyaml.safe_load(f)\n"
    harmless += "yaml.load(f, yaml.SafeLoader)\nnp.load(f)\nre.compile(x)\nsubprocess.run([x])\njson.load(f)"
    assert dangers(harmless) == set()


# --- documented commands ---

DOCUMENTS = [ROOT / "README.md", ROOT / "hub/templates/model_card.md", *sorted((ROOT / "docs").glob("*.md")),
             ROOT / "train/lora.py", ROOT / "eval/metrics/ndcg/README.md",
             *sorted(path for path in (ROOT / "examples").iterdir() if path.is_file())]  # fmt: skip
WRITTEN_HERE = ("runs", "demo-output", "hub", "models")  # folders that documented commands make, or that come along
WITHOUT_CODE = {"sentence-transformers/all-MiniLM-L6-v2"}  # models whose classes are in transformers
HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def is_local(name: str) -> bool:
    return name.split("/")[0] in WRITTEN_HERE


def unpinned(text: str) -> list[str]:
    """Calls that run the code of a Hub id at whatever commit it is, and encoders that would have to."""
    found = []
    for start in re.finditer(r"\w\(", text):
        call = own_arguments(text, start.end())
        runs_code = re.search(r"trust_remote_code\s*=\s*True", call) or text.endswith("evaluate.load(", 0, start.end())
        if runs_code:
            pinned = re.search(r"\brevision\s*=\s*(?![\"'](main|master)[\"'])", call)
            found += [name for name in re.findall(rf"[\"']({HUB_ID})[\"']", call) if not (pinned or is_local(name))]
    for name in re.findall(rf"(?:--encoder[ =]|\bmodel: )[\"']?({HUB_ID}(?:@\S+)?)", text):
        pinned = re.search("@([0-9a-f]{40}|COMMIT)$", name.strip("\"'`,."))
        found += [] if pinned or is_local(name) or name in WITHOUT_CODE else [name]
    return found


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
    "text",
    [
        'model = SentenceTransformer("org/name", trust_remote_code=True)',
        'AutoModel.from_pretrained(\n    "org/name",\n    trust_remote_code = True,\n)',
        'pipeline("fill-mask", model="org/name-2.0", trust_remote_code=True)',
        'AutoModel.from_pretrained("org/name", trust_remote_code=True, revision="main")',
        'PeftModel.from_pretrained(AutoModel.from_pretrained("org/name", trust_remote_code=True), "adapter")',
        'AutoModel.from_pretrained("org/name", config=M2BertConfig(), trust_remote_code=True)',
        "m2bert eval --encoder bm25 --encoder org/name --data my-task",
        "encoders:\n  - model: org/name",
        "m2bert eval --encoder org/name@main",
        'ndcg = evaluate.load("org/ndcg")',
    ],
)
def test_an_unpinned_command_is_found(text):
    assert len(unpinned(f"Load it:\n\n```\n{text}\n```\n")) == 1


@pytest.mark.parametrize(
    "text",
    [
        'SentenceTransformer("org/name", trust_remote_code=True, revision="0123456789abcdef0123456789abcdef01234567")',
        'SentenceTransformer("org/name", revision=COMMIT, trust_remote_code=True)',
        'SentenceTransformer("runs/opl-small", trust_remote_code=True)',
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        'load_dataset("org/name")',
        'evaluate.load("org/ndcg", revision="COMMIT")',
        "m2bert eval --encoder sentence-transformers/all-MiniLM-L6-v2 --encoder org/name@" + 40 * "a",
    ],
)
def test_a_pinned_or_local_command_passes(text):
    assert unpinned(f"Load it:\n\n```\n{text}\n```\n") == []


# --- tokens ---

SPEAKS = re.compile(r"^(print|logger\.\w+|logging\.\w+|typer\.(echo|secho)|warnings\.warn|sys\.std(out|err)\.write)$")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")


def reads_token(node: ast.AST, names: dict[str, str]) -> bool:
    """Whether an expression is a token, or the whole environment, in which one may be."""
    if isinstance(node, ast.Call):
        called, asked = dotted(node.func, names), node.args[0] if node.args else None
        if called.endswith("get_token"):
            return True
    elif isinstance(node, ast.Subscript):
        called, asked = dotted(node.value, names), node.slice
    else:
        return False
    from_environment = called in ("os.getenv", "os.environ", "os.environ.get")
    return from_environment and isinstance(asked, ast.Constant) and asked.value in TOKENS


def told_tokens(source: str) -> list[int]:
    """Lines that put a token, or a name that holds one, into a log or an error."""
    tree = ast.parse(source)
    names = names_of_imports(tree)
    secret = {"hf_token", "hub_token", "api_key"}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.NamedExpr, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(reads_token(each, names) for each in ast.walk(node.value)):
                secret |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    spoken = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)
              or (isinstance(node, ast.Call) and SPEAKS.match(dotted(node.func, names)))]  # fmt: skip

    def is_secret(node):
        whole = dotted(node, names) == "os.environ"
        return reads_token(node, names) or whole or (isinstance(node, ast.Name) and node.id in secret)

    return sorted({node.lineno for node in spoken if any(map(is_secret, ast.walk(node)))})


def test_tokens_are_neither_logged_nor_part_of_errors():
    found = {path.relative_to(ROOT).as_posix(): told_tokens(path.read_text()) for path in CODE}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from huggingface_hub import get_token\nx = get_token()\nlogger.info('as %s', x)",
        "import os\nprint(os.environ['HF_TOKEN'])",
        "import os\nif key := os.getenv('HF_TOKEN'):\n    raise ValueError(f'{key} is wrong')",
        "import os\nkey = os.environ.get('HF_TOKEN') or ''\nlogging.debug(key[:4])",
        "import huggingface_hub\nraise OSError(huggingface_hub.get_token())",
        "import os\nlogger.debug('%s', os.environ)",
        "def f(hf_token):\n    typer.echo(hf_token)",
    ],
)
def test_a_told_token_is_found(source):
    source = source if "typer" not in source else "import typer\n" + source
    assert told_tokens(source)


def test_naming_the_variable_is_no_secret():
    assert told_tokens("import os\nx = os.environ['HF_TOKEN']\nraise ValueError('set HF_TOKEN')") == []
