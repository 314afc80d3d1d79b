"""The wheel holds what the code reads at run time, and claims no top-level name but ours."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ["m2bert", "modeling_m2bert", "train", "eval", "hub", "search"]
FILES = ["configuration_m2bert.py", "pyproject.toml", "README.md", "LICENSE"]
OURS = {"m2bert", "modeling_m2bert", "configuration_m2bert.py"}


def test_wheel_contents(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name)
    for name in FILES:
        shutil.copyfile(ROOT / name, source / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", tmp_path, source], check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "m2bert = m2bert.cli:main" in archive.read(entry_points).decode()
        assert "index = m2bert.search.ranker:IndexRanker" in archive.read(entry_points).decode()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == OURS
    for folder in ("train", "eval", "hub", "search"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"m2bert/{path.relative_to(ROOT)}" in names
