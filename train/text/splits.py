"""The split test: neither trained on nor selected on, under any spelling."""

import re
from pathlib import Path


def names_split(value: str, split: str) -> bool:
    """Whether the name of a split, a file or a Hub data set says the word: `test`, `validation+TEST`, `test_256`,
    `test-00000-of-00001.parquet`, `test/0.parquet`, but not `latest`."""
    path = Path(value.lower())
    return path.parent.name == split or bool(re.search(rf"(?<![a-z]){split}(?![a-z])", path.name))


def refuse_test(key: str, value: str | None):
    """Raise ValueError if a setting names the test split, or a file of it."""
    if value is not None and names_split(value, "test"):
        raise ValueError(f"{key}={value} is the test split: neither trained on nor selected on. Name another")
