"""Who may import whom, read from the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAZY = ROOT / "m2bert" / "__init__.py"  # hands the model's classes on when they are asked for
ROOMS = {"train", "eval", "hub"}
MAY_KNOW = {"m2bert": set(), "modeling_m2bert": set(), "eval": {"shared"}, "hub": {"shared", "model", "eval"},
            "train": {"shared", "model", "eval", "hub"}}  # fmt: skip
KERNELS_MAY_IMPORT = {"torch", "triton", "collections", "functools", "itertools", "logging", "math", "os", "typing"}
KERNELS_MAY_IMPORT |= {"threading", "weakref"}
READ_THE_HUB = ("hub_data.py",)  # of train/: imported when a run names text on the Hub
NEEDS_NO_DATA_LIBRARY = {"datasets", "evaluate", "mteb", "pytrec_eval"}


def imports(path):
    """(module, level) of every import statement of a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


def room_of(module):
    """The room of ours that a dotted name lies in, or None."""
    first, *rest = module.split(".")
    if first == "m2bert":
        return rest[0] if rest and rest[0] in ROOMS else "shared"
    return "model" if first in {"modeling_m2bert", "configuration_m2bert"} else None


@pytest.mark.parametrize("folder", MAY_KNOW)
def test_import_directions(folder):
    own = {"modeling_m2bert": "model", "m2bert": "shared"}.get(folder, folder)
    for path in set((ROOT / folder).rglob("*.py")) - {LAZY}:
        known = {room_of(module) for module, level in imports(path) if not level} - {None}
        assert known <= MAY_KNOW[folder] | {own}, path


def test_kernels_know_tensors_and_numbers_only():
    for path in (ROOT / "modeling_m2bert").glob("m2bert_ops*.py"):
        for module, level in imports(path):
            assert module.startswith("m2bert_ops") if level else module.split(".")[0] in KERNELS_MAY_IMPORT, path


@pytest.mark.parametrize("folder", ["modeling_m2bert", "train", "hub"])
def test_model_training_and_hub_import_without_data_libraries(folder):
    for path in (ROOT / folder).rglob("*.py"):
        allowed = {"datasets"} if path.name in READ_THE_HUB and folder == "train" else set()
        found = {module.split(".")[0] for module, _ in imports(path)} & NEEDS_NO_DATA_LIBRARY
        assert found <= allowed, path


def test_training_runs_where_there_is_no_data_library():
    """What the static test cannot see: that nothing else imports the files that read the Hub until they are needed."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "train").rglob("*.py")]
    modules = [".".join(("m2bert", *path.parts)) for path in paths if f"{path.name}.py" not in READ_THE_HUB]
    blocked = {name: None for name in NEEDS_NO_DATA_LIBRARY}
    code = f"import sys, importlib; sys.modules.update({blocked}); [importlib.import_module(m) for m in {modules}]"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_users_of_the_model_go_through_the_auto_classes():
    for folder in ("train", "hub"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not any(module.startswith("modeling_m2bert.") for module, _ in imports(path)), path
