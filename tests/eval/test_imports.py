"""Who imports whom inside eval, read from the syntax trees."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

EVAL = Path(__file__).resolve().parents[2] / "eval"


def modules_imported(path: Path) -> set[str]:
    """The modules of eval that a file imports, also inside functions, as paths within eval."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {folder.joinpath(*name.split(".")).relative_to(EVAL).as_posix() for name in names}
    return found


def test_no_module_of_eval_imports_in_a_circle_and_the_root_stays_small():
    modules = {path.relative_to(EVAL).with_suffix("").as_posix(): modules_imported(path) for path in EVAL.rglob("*.py")}
    assert {"search", "encoders/cache"} <= modules["rankers"]
    assert len([name for name in modules if "/" not in name]) <= 15
    TopologicalSorter(modules).prepare()  # raises CycleError


def test_the_metric_can_leave_the_package():
    names = {
        alias.name if isinstance(node, ast.Import) else node.module or "."
        for node in ast.walk(ast.parse((EVAL / "metrics" / "ndcg" / "ndcg.py").read_bytes()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert names == {"math", "operator", "datasets", "evaluate", "pytrec_eval"}
