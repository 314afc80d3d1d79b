import ast
from pathlib import Path

EVAL = Path(__file__).resolve().parents[2] / "eval"
FORBIDDEN = {"modeling_m2bert", "configuration_m2bert"}


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("" if node.level else node.module)
    return {name.split(".")[0] for name in names}


def test_eval_knows_models_as_encoders_only():
    found = {path.name: imported_names(path) & FORBIDDEN for path in EVAL.rglob("*.py")}
    assert len(found) > 8
    assert {name: names for name, names in found.items() if names} == {}


def test_the_metric_can_leave_the_package():
    assert "m2bert.eval" not in imported_names(EVAL / "metrics" / "ndcg" / "ndcg.py")
