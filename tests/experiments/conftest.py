"""Files of experiments/ and examples/ are imported as they are where they run."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    """Import a script by its path from the root, with the files next to it."""

    def load(path):
        monkeypatch.syspath_prepend(ROOT / Path(path).parent)
        return importlib.import_module(Path(path).stem)

    return load
