"""Triples from the Hub, read whole."""

import pyarrow as pa

from m2bert.eval.tasks.from_hub import load_table


def load_hub_rows(path: str, config: str | None, limit: int | None) -> pa.Table:
    """The first rows of the split `train`, as a table."""
    hint = "a local data.triples is a parquet or JSON-lines file"
    split = "train" if limit is None else f"train[:{limit}]"
    table, _ = load_table(path, config, split, f"data.triples={path}", hint)
    return table
