"""Who may import whom, read from the syntax trees, imports inside functions too."""

import ast
from pathlib import Path

import pytest
from count import PACKAGE, ROOT, count_circles, imports_of, module_of

MAY_KNOW = {"m2bert": set(), "modeling_m2bert": set(), "eval": {"m2bert"}, "hub": {"m2bert", "modeling_m2bert", "eval"},
            "train": {"m2bert", "modeling_m2bert", "eval", "hub"}, "search": {"m2bert", "eval"}}  # fmt: skip
LAZY = Path("m2bert/__init__.py")  # hands on the model's classes when they are asked for
KERNELS_MAY_IMPORT = {"torch", "triton", "collections", "functools", "itertools", "logging", "math", "os", "threading",
                      "typing", "weakref"}  # fmt: skip
PATHS = [path for room in PACKAGE for path in (ROOT / room).rglob("*.py")]
TREES = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in PATHS}
MODULES = {module_of(path): path for path in TREES}
GRAPH = {module_of(path): imports_of(tree, path, set(MODULES)) for path, tree in TREES.items()}


@pytest.mark.parametrize("room", MAY_KNOW)
def test_import_directions(room):
    for path in TREES:
        if path.parts[0] == room and path != LAZY:
            known = {MODULES[module].parts[0] for module in GRAPH[module_of(path)]}
            assert known <= MAY_KNOW[room] | {room}, path


def test_nothing_imports_in_a_circle_and_the_rooms_stay_few():
    assert GRAPH["m2bert.eval.rankers"] >= {"m2bert.eval.search", "m2bert.eval.encoders.cache"}  # edges are seen
    assert count_circles(GRAPH) == 0
    assert sum(path.parent == Path("eval") and path.stem != "__init__" for path in TREES) <= 15


def top_level_imports(path):
    """Yield (first part of the name, level) of every import statement."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0], node.level


def test_kernels_know_tensors_and_numbers_only():
    for path in TREES:
        if path.match("modeling_m2bert/m2bert_ops*.py"):
            for name, level in top_level_imports(path):
                assert name.startswith("m2bert_ops") if level else name in KERNELS_MAY_IMPORT, path


def test_users_of_the_model_go_through_the_auto_classes():
    for module, imported in GRAPH.items():
        if not module.startswith("modeling_m2bert"):
            assert not any(name.startswith("modeling_m2bert.") for name in imported), module


def test_the_metric_can_leave_the_package():
    names = {name for name, _ in top_level_imports(Path("eval/metrics/ndcg/ndcg.py"))}
    assert names == {"math", "numbers", "datasets", "evaluate", "pytrec_eval"}
