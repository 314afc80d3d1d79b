"""Retrieval data from the Hub, read whole: data sets in the LoCoV1 schema, and triples."""

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from m2bert_eval.locov1 import DOCUMENT_COLUMNS, QUERY_COLUMNS, RetrievalTask, make_task


def load_hub_tasks(path: str, names: list[str] | None, split: str) -> list[RetrievalTask]:
    """Tasks of a pair of data sets, PATH-Queries and PATH-Documents (`hazyresearch/LoCoV1`).

    Args:
        names: values of the column `dataset`; None takes all.

    Raises:
        ValueError: a data set, split or task is not there; or see `m2bert_eval.locov1.make_task`.
    """
    hint = f"a local data.path is a folder with queries/{split}.parquet and documents/{split}.parquet"
    tables = [
        load_table(f"{path}-{kind}", None, split, f"data.path={path}", hint, columns)
        for kind, columns in (("Queries", QUERY_COLUMNS), ("Documents", DOCUMENT_COLUMNS))
    ]
    known = sorted(filter(None, set(tables[1]["dataset"].to_pylist())))
    unknown = [name for name in names or [] if name not in known]
    if unknown:
        raise ValueError(f"task {unknown[0]!r} is not in {path}; tasks there: {', '.join(known)}")
    tasks = []
    for name in names or known:
        queries, documents = (table.filter(pc.equal(table["dataset"], name)).to_pylist() for table in tables)
        tasks.append(make_task(name, split, queries, documents))
    return tasks


def load_hub_rows(path: str, config: str | None, limit: int | None) -> pa.Table:
    """The first rows of the split `train`, as a table."""
    hint = "a local data.triples is a parquet or JSON-lines file"
    return load_table(path, config, "train" if limit is None else f"train[:{limit}]", f"data.triples={path}", hint)


def load_table(
    path: str, config: str | None, split: str, setting: str, hint: str, columns: tuple[str, ...] = ()
) -> pa.Table:
    """A split of a data set of the Hub, downloaded on first use.

    Args:
        setting, hint: what named it, and what it might have meant instead; for errors.

    Raises:
        ValueError: it cannot be loaded, or lacks a column.
    """
    try:
        data = datasets.load_dataset(path, config, split=split)
    except (OSError, ValueError) as error:  # not there, no such split, no network
        raise ValueError(
            f"{setting}: {path!r} is no local path, and as a data set of the Hub its split {split!r} cannot be loaded "
            f"({' '.join(str(error).split())}); {hint}"
        ) from error
    missing = [column for column in columns if column not in data.column_names]
    if missing:
        raise ValueError(f"Hub data set {path!r} lacks the column {missing[0]!r}; it has {data.column_names}")
    return data.with_format("arrow")[:]
