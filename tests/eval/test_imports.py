"""Who imports whom inside eval, read from the syntax trees."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

EVAL = Path(__file__).resolve().parents[2] / "eval"


def imported(path: Path) -> set[str]:
    """The rooms (folders and modules at the root of eval) that a file imports, also inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level == len(path.relative_to(EVAL).parts):
            rooms |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return rooms


def test_no_room_of_eval_imports_in_a_circle():
    rooms: dict[str, set[str]] = {}
    for path in EVAL.rglob("*.py"):
        first = path.relative_to(EVAL).parts[0].removesuffix(".py")
        rooms.setdefault(first, set()).update(imported(path) - {first})
    assert {"tasks", "search"} <= rooms["rankers"] | rooms["encoders"]
    assert len([room for room in rooms if (EVAL / f"{room}.py").is_file()]) <= 15
    TopologicalSorter(rooms).prepare()  # raises CycleError


def test_the_metric_can_leave_the_package():
    names = {
        alias.name if isinstance(node, ast.Import) else node.module or "."
        for node in ast.walk(ast.parse((EVAL / "metrics" / "ndcg" / "ndcg.py").read_bytes()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert names == {"math", "operator", "datasets", "evaluate", "pytrec_eval"}
