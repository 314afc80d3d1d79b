"""Count what this repository is made of: `python experiments/count.py` prints two Markdown tables.

Lines are those of the files in git, blank ones and comments too. models/ holds links and is left out. Imports are read
from syntax trees, those inside functions too.
"""

import ast
import subprocess
from collections import defaultdict
from importlib.util import resolve_name
from pathlib import Path

import numpy as np
from pages import table
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).parents[1]
PACKAGE = ("m2bert", "modeling_m2bert", "train", "eval", "hub", "search")


def module_of(path: Path) -> str:
    """Return the import name of a file: the rooms train, eval, hub and search are imported as m2bert.ROOM."""
    parts = path.with_suffix("").parts
    if parts[0] in ("train", "eval", "hub", "search"):
        parts = ("m2bert", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.Module, path: Path, modules: set[str]) -> set[str]:
    """Return the modules of this repository that a file imports."""
    own = module_of(path)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:  # `from a import b` is of a.b if that is a module
                found.add(f"{name}.{alias.name}" if f"{name}.{alias.name}" in modules else name)
    return (found & modules) - {own}


def count_circles(graph: dict[str, set[str]]) -> int:
    """Return how many groups of modules import each other in a circle."""
    links = [[other in graph[module] for other in graph] for module in graph]
    _, group = connected_components(csr_array(links), connection="strong")
    return int((np.bincount(group) > 1).sum())


def main():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout
    paths = [Path(line) for line in listed.splitlines() if not line.startswith("models/") and (ROOT / line).is_file()]
    files = {path: (ROOT / path).read_text(encoding="utf-8") for path in paths}
    trees = {path: ast.parse(text) for path, text in files.items()}
    lines = {path: len(text.splitlines()) for path, text in files.items()}
    rooms = defaultdict(list)
    for path in files:
        rooms[path.parts[0] if len(path.parts) > 1 else "top level"].append(path)
    tests = rooms.pop("tests")
    code = [path for paths in rooms.values() for path in paths]
    rows = [[room, str(len(paths)), f"{sum(map(lines.get, paths)):,}"] for room, paths in sorted(rooms.items())]
    rows.append(["**code**", str(len(code)), f"{sum(map(lines.get, code)):,}"])
    rows.append(["tests", str(len(tests)), f"{sum(map(lines.get, tests)):,}"])
    print(table(["room", "files", "lines"], rows), end="\n\n")

    package = [path for path in code if path.parts[0] in PACKAGE]
    modules = {module_of(path) for path in package}
    graph = {module_of(path): imports_of(trees[path], path, modules) for path in package}
    raises = sum(isinstance(node, ast.Raise) for path in package for node in ast.walk(trees[path]))
    functions = {
        f"{path}:{node.name}": node.end_lineno - node.lineno + 1
        for path in code
        for node in ast.walk(trees[path])
        if isinstance(node, ast.FunctionDef)
    }
    longest = max(functions, key=functions.get)
    of_eval = {module: module.split(".")[2] for module in graph if module.startswith("m2bert.eval.")}  # its room
    arrows = {(of_eval[module], of_eval[other]) for module in of_eval for other in graph[module] & of_eval.keys()}
    facts = {
        "`raise` statements per 1,000 lines of the package": f"{1000 * raises / sum(map(lines.get, package)):.1f}",
        "files and folders at the top of eval": len({*of_eval.values()}),
        "imports among them": sum(one != other for one, other in arrows),
        "circles among the package's modules": count_circles(graph),
        "longest function": f"{functions[longest]} lines, `{longest}`",
    }
    print(table(["measure", "value"], [[name, str(value)] for name, value in facts.items()]))


if __name__ == "__main__":
    main()
